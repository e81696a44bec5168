//! The attribute's arguments: which there are, and what each may be.

use crate::duration;
use proc_macro2::{TokenStream, TokenTree};
use quote::{ToTokens, quote, quote_spanned};
use std::time::Duration;
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream};
use syn::spanned::Spanned;
use syn::{Error, Expr, ExprLit, Ident, Lit, Pat, Token};

/// `#[cached(...)]`, read.
#[derive(Default)]
pub(crate) struct Options {
    pub(crate) key: Option<Expr>,
    pub(crate) tags: Vec<Expr>,
    pub(crate) condition: Option<Expr>,
    pub(crate) cache: Option<Expr>,
    pub(crate) namespace: Option<Expr>,
    pub(crate) entries_max: Option<Expr>,
    pub(crate) cache_none: Option<bool>,
    pub(crate) is_associated: bool,
    /// Whether each call is about the entries of the task's tenant.
    pub(crate) has_tenants: bool,
    /// Computed at each load, with the function's arguments at hand.
    pub(crate) ttl: Option<Expr>,
    pub(crate) negative_ttl: Option<Expr>,
    /// Fields of `larder::EntryOptions` with their values, for all calls.
    pub(crate) fields: Vec<(Ident, TokenStream)>,
}

const NAMES: &str = "key, ttl, tags, condition, namespace, cache, entries_max, negative_ttl, cache_none, \
                     refresh_after, stale_while_revalidate, stale_on_error, stale_on_error_throttle, \
                     early_refresh_beta, ttl_jitter, sliding, load_timeout_soft, load_timeout_hard, tenant, associated";

impl Parse for Options {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let mut options = Options::default();
        let mut seen: Vec<Ident> = Vec::new();
        while !input.is_empty() {
            if !input.peek(Ident::peek_any) {
                return Err(input.error(format!("#[cached] takes `name = value`; the names are: {NAMES}")));
            }
            let name = input.call(Ident::parse_any)?;
            if seen.contains(&name) {
                return Err(Error::new(name.span(), format!("`{name}` is given twice")));
            }
            options.take(&name, input)?;
            seen.push(name);
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        let own_only = seen.iter().find(|name| *name == "entries_max" || *name == "tenant");
        if let (Some(name), Some(_)) = (own_only, &options.cache) {
            let what = if name == "tenant" { "tenants count" } else { "limit holds" };
            let why =
                format!("`{name}` is for the function's own cache; with `cache = ...` that cache's {what}");
            return Err(Error::new(name.span(), why));
        }
        Ok(options)
    }
}

impl Options {
    /// Whether an expression over the arguments mentions a name that the pattern binds.
    pub(crate) fn mention(&self, pattern: &Pat) -> bool {
        let over_arguments = [&self.key, &self.condition, &self.ttl, &self.negative_ttl]
            .into_iter()
            .flatten()
            .chain(&self.tags);
        let mut names = Vec::new();
        over_arguments.for_each(|expr| collect_names(expr.to_token_stream(), &mut names));
        let mut bound = Vec::new();
        collect_names(pattern.to_token_stream(), &mut bound);
        bound.iter().any(|name| names.contains(name))
    }

    fn take(&mut self, name: &Ident, input: ParseStream<'_>) -> syn::Result<()> {
        match name.to_string().as_str() {
            "associated" => self.is_associated = true,
            "sliding" => self.fields.push((Ident::new("is_sliding", name.span()), quote!(true))),
            "key" => self.key = Some(value(name, input)?),
            "condition" => self.condition = Some(value(name, input)?),
            "cache" => self.cache = Some(value(name, input)?),
            "namespace" => self.namespace = Some(namespace(value(name, input)?)?),
            "entries_max" => self.entries_max = Some(at_least_one(value(name, input)?)?),
            "tenant" => self.has_tenants = tenant(&value(name, input)?)?,
            "tags" => self.tags = list(&value(name, input)?)?,
            "cache_none" => self.cache_none = Some(boolean(&value(name, input)?)?),
            "ttl" => match duration_value(value(name, input)?)? {
                Given::Constant(ttl) => self.fields.push((name.clone(), ttl)),
                Given::Computed(ttl) => self.ttl = Some(ttl),
            },
            "negative_ttl" => match duration_value(value(name, input)?)? {
                Given::Constant(ttl) => self.fields.push((name.clone(), ttl)),
                Given::Computed(ttl) => self.negative_ttl = Some(ttl),
            },
            "stale_while_revalidate" | "stale_on_error" | "stale_on_error_throttle" | "load_timeout_hard" => {
                let duration = duration_value(value(name, input)?)?.into_tokens();
                self.fields.push((name.clone(), duration));
            }
            "load_timeout_soft" => {
                let duration = duration_value(value(name, input)?)?.into_tokens();
                self.fields.push((name.clone(), quote!(::core::option::Option::Some(#duration))));
            }
            "ttl_jitter" => {
                let share = share(name, value(name, input)?)?;
                self.fields.push((name.clone(), share));
            }
            "refresh_after" => {
                let share = share(name, value(name, input)?)?;
                self.fields.push((name.clone(), quote!(::core::option::Option::Some(#share))));
            }
            "early_refresh_beta" => {
                let beta = value(name, input)?;
                self.fields.push((name.clone(), quote!(::core::option::Option::Some(f64::from(#beta)))));
            }
            other => {
                let why = format!("#[cached] has no `{other}`; it has: {NAMES}");
                return Err(Error::new(name.span(), why));
            }
        }
        Ok(())
    }
}

fn value(name: &Ident, input: ParseStream<'_>) -> syn::Result<Expr> {
    if !input.peek(Token![=]) {
        return Err(Error::new(name.span(), format!("`{name}` needs a value: `{name} = ...`")));
    }
    input.parse::<Token![=]>()?;
    input.parse()
}

/// A duration that is known now, or an expression.
enum Given {
    Constant(TokenStream),
    Computed(Expr),
}

impl Given {
    fn into_tokens(self) -> TokenStream {
        match self {
            Given::Constant(tokens) => tokens,
            Given::Computed(expr) => expr.into_token_stream(),
        }
    }
}

fn duration_value(expr: Expr) -> syn::Result<Given> {
    let refused = |why: String| Error::new(expr.span(), why);
    let duration = match literal(&expr) {
        Some(Lit::Str(text)) => duration::parse(&text.value()).map_err(refused)?,
        Some(Lit::Int(seconds)) => Duration::from_secs(seconds.base10_parse()?),
        Some(Lit::Float(seconds)) => Duration::try_from_secs_f64(seconds.base10_parse()?)
            .map_err(|error| refused(format!("{seconds} seconds: {error}")))?,
        Some(_) => {
            return Err(refused(
                "a duration is a text (\"5m\"), a number of seconds, or an expression of type `Duration`"
                    .to_owned(),
            ));
        }
        None => return Ok(Given::Computed(expr)),
    };
    let span = expr.span();
    let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos());
    Ok(Given::Constant(quote_spanned!(span=> ::core::time::Duration::new(#seconds, #nanos))))
}

/// A share of something: 0 to 1, checked now where it can be.
fn share(name: &Ident, expr: Expr) -> syn::Result<TokenStream> {
    let known = match literal(&expr) {
        Some(Lit::Float(share)) => Some(share.base10_parse::<f64>()?),
        Some(Lit::Int(share)) => Some(share.base10_parse::<f64>()?),
        Some(_) => Some(f64::NAN),
        None => None,
    };
    match known {
        None => Ok(expr.into_token_stream()),
        Some(share) if (0.0..=1.0).contains(&share) => Ok(quote!(#share)),
        Some(_) => Err(Error::new(expr.span(), format!("`{name}` is a share: 0 to 1 is allowed"))),
    }
}

/// Namespaces that are written out are checked now, by the rule of `larder::key::Namespace`.
fn namespace(expr: Expr) -> syn::Result<Expr> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte);
    match literal(&expr) {
        Some(Lit::Str(name)) => {
            let name = name.value();
            if !name.is_empty() && name.len() <= 128 && name.bytes().all(is_allowed) {
                return Ok(expr);
            }
            let why =
                format!("\"{name}\" is no namespace: 1 to 128 bytes of A-Z a-z 0-9 _ - . : are allowed");
            Err(Error::new(expr.span(), why))
        }
        Some(_) => Err(Error::new(expr.span(), "a namespace is a text, like \"users\"")),
        None => Ok(expr),
    }
}

fn tenant(expr: &Expr) -> syn::Result<bool> {
    match literal(expr) {
        Some(Lit::Str(from)) if from.value() == "context" => Ok(true),
        _ => Err(Error::new(
            expr.span(),
            "`tenant = \"context\"` is allowed; for a tenant of the arguments give the cache of the tenant: `cache = ...`",
        )),
    }
}

fn at_least_one(expr: Expr) -> syn::Result<Expr> {
    match literal(&expr) {
        Some(Lit::Int(number)) if number.base10_parse::<u64>()? == 0 => {
            Err(Error::new(expr.span(), "`entries_max` is 0; at least 1 is allowed"))
        }
        _ => Ok(expr),
    }
}

fn list(expr: &Expr) -> syn::Result<Vec<Expr>> {
    match expr {
        Expr::Array(array) => Ok(array.elems.iter().cloned().collect()),
        _ => Err(Error::new(expr.span(), "`tags` is a list: `tags = [\"users\", format!(\"user:{id}\")]`")),
    }
}

fn boolean(expr: &Expr) -> syn::Result<bool> {
    match literal(expr) {
        Some(Lit::Bool(flag)) => Ok(flag.value),
        _ => Err(Error::new(expr.span(), "`true` or `false` is allowed")),
    }
}

/// All identifiers, and those that format strings capture.
fn collect_names(tokens: TokenStream, names: &mut Vec<String>) {
    for token in tokens {
        match token {
            TokenTree::Ident(ident) => names.push(ident.to_string()),
            TokenTree::Group(group) => collect_names(group.stream(), names),
            TokenTree::Literal(text) => {
                let is_part = |c: char| c.is_alphanumeric() || c == '_';
                let text = text.to_string();
                let captured = text.split('{').skip(1).map(|rest| rest.split(|c| !is_part(c)).next());
                names.extend(captured.flatten().map(str::to_owned));
            }
            TokenTree::Punct(_) => {}
        }
    }
}

fn literal(expr: &Expr) -> Option<Lit> {
    match expr {
        Expr::Lit(ExprLit { lit, .. }) => Some(lit.clone()),
        Expr::Group(group) => literal(&group.expr),
        _ => None,
    }
}
