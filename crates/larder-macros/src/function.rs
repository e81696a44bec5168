//! The function that is cached: its parts, and why some functions can't be.

use crate::options::Options;
use crate::returns::{Borrowed, Returns, impl_trait};
use proc_macro2::{Delimiter, Span, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Error, FnArg, GenericParam, Ident, ItemFn, Pat, Receiver, ReceiverKind, Type, WherePredicate};

/// Most arguments of a key: serde knows tuples up to here.
const KEY_PARTS_MAX: usize = 16;

pub(crate) struct Function {
    pub(crate) item: ItemFn,
    pub(crate) returns: Returns,
    pub(crate) receiver: Option<(Receiver, Argument)>,
    pub(crate) arguments: Vec<Argument>,
    /// `Self::`, where its siblings are associated functions.
    pub(crate) path: TokenStream,
}

/// An argument, `self` too.
pub(crate) struct Argument {
    pub(crate) name: TokenStream,
    pub(crate) ty: Type,
    /// What a reference points to; `None` for an argument by value.
    pub(crate) referent: Option<Type>,
    /// The pattern that takes the place of a name.
    pub(crate) pattern: Option<Pat>,
}

impl Function {
    pub(crate) fn read(item: ItemFn, options: &Options) -> syn::Result<Self> {
        refuse_qualifiers(&item)?;
        let returns = Returns::read(&item.sig.output, &item.sig.ident)?;
        let mut receiver = None;
        let mut arguments = Vec::new();
        for (place, input) in item.sig.inputs.iter().enumerate() {
            match input {
                FnArg::Receiver(this) => receiver = Some((this.clone(), read_receiver(this)?)),
                FnArg::Typed(argument) => {
                    arguments.push(read_argument(place, &argument.pat, &argument.ty)?);
                }
            }
        }
        if options.key.is_none() && arguments.len() > KEY_PARTS_MAX {
            return Err(Error::new_spanned(
                &item.sig.inputs,
                format!(
                    "#[cached] makes a key of at most {KEY_PARTS_MAX} arguments: say which with `key = (...)`"
                ),
            ));
        }
        if let (Some(false), false) = (options.cache_none, returns.is_optional) {
            return Err(Error::new_spanned(
                &returns.full,
                "`cache_none = false` is for functions that return `Option<T>` or `Result<Option<T>, E>`",
            ));
        }
        let is_associated = options.is_associated
            || receiver.is_some()
            || mentions_self(item.sig.to_token_stream())
            || mentions_self(item.block.to_token_stream());
        let path = if is_associated { quote!(Self::) } else { TokenStream::new() };
        Ok(Function { item, returns, receiver, arguments, path })
    }

    pub(crate) fn is_associated(&self) -> bool {
        !self.path.is_empty()
    }

    /// The name of a sibling.
    pub(crate) fn sibling(&self, suffix: &str) -> Ident {
        format_ident!("{}_{suffix}", self.item.sig.ident)
    }

    /// `self` and the arguments.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Argument> {
        self.receiver.iter().map(|(_, this)| this).chain(&self.arguments)
    }

    /// The parameters as siblings declare them.
    pub(crate) fn parameters(&self) -> TokenStream {
        let receiver = self.receiver.iter().map(|(receiver, _)| receiver);
        let arguments = self.arguments.iter().map(|Argument { name, ty, .. }| quote!(#name: #ty));
        quote!(#(#receiver,)* #(#arguments,)*)
    }

    /// Predicates of the where-clause that siblings without lifetimes can repeat.
    pub(crate) fn where_without_lifetimes(&self) -> TokenStream {
        let Some(clause) = &self.item.sig.generics.where_clause else { return TokenStream::new() };
        let of_types =
            clause.predicates.iter().filter(|predicate| !matches!(predicate, WherePredicate::Lifetime(_)));
        quote!(where #(#of_types),*)
    }
}

fn refuse_qualifiers(item: &ItemFn) -> syn::Result<()> {
    let sig = &item.sig;
    let refused = |span: Span, why: &str| Err(Error::new(span, format!("#[cached] {why}")));
    if let Some(constness) = &sig.constness {
        return refused(constness.span(), "can't cache a `const fn`: it has no state at compile time");
    }
    if let syn::Safety::Unsafe(keyword) = &sig.safety {
        return refused(
            keyword.span(),
            "can't cache an `unsafe fn`: a load may run at another time and on another thread than the call \
             that promised safety; cache a safe function around it",
        );
    }
    if let Some(abi) = &sig.abi {
        return refused(abi.span(), "can't cache an `extern` function");
    }
    for parameter in &sig.generics.params {
        let what = match parameter {
            GenericParam::Lifetime(_) => continue,
            GenericParam::Type(_) => "type",
            GenericParam::Const(_) => "const",
        };
        return refused(
            parameter.span(),
            &format!(
                "doesn't take {what} parameters: one cache can't hold values of many types; cache a function \
                 of concrete types that calls this one"
            ),
        );
    }
    Ok(())
}

fn read_receiver(receiver: &Receiver) -> syn::Result<Argument> {
    let span = receiver.self_token.span();
    let by_value = "#[cached] can't cache a method that consumes `self`: take `&self` or `self: &Arc<Self>`";
    let mutable =
        "#[cached] can't cache a method that changes `self`: a hit would skip the change; take `&self`";
    let ty: Type = match &receiver.kind {
        ReceiverKind::Reference(_, _, Some(mutability)) => {
            return Err(Error::new(mutability.span(), mutable));
        }
        ReceiverKind::Reference(..) => syn::parse2(quote_spanned!(span=> &Self))?,
        ReceiverKind::Typed(_, ty) => (**ty).clone(),
        _ => return Err(Error::new(span, by_value)),
    };
    if let Type::Path(path) = &ty
        && path.path.is_ident("Self")
    {
        return Err(Error::new(span, by_value));
    }
    let referent = match &ty {
        Type::Reference(reference) if reference.mutability.is_some() => {
            return Err(Error::new_spanned(reference, mutable));
        }
        Type::Reference(reference) => Some((*reference.elem).clone()),
        _ => None,
    };
    Ok(Argument { name: receiver.self_token.to_token_stream(), ty, referent, pattern: None })
}

fn read_argument(place: usize, pattern: &Pat, ty: &Type) -> syn::Result<Argument> {
    let (name, pattern) = match pattern {
        Pat::Ident(name) if name.subpat.is_none() && name.by_ref.is_none() => {
            (name.ident.to_token_stream(), None)
        }
        Pat::Wild(_) => {
            (format_ident!("argument_{place}", span = Span::mixed_site()).to_token_stream(), None)
        }
        other => {
            let name = format_ident!("argument_{place}", span = Span::mixed_site());
            (name.to_token_stream(), Some(other.clone()))
        }
    };
    if let Some(found) = impl_trait(ty) {
        return Err(Error::new_spanned(
            found,
            "#[cached] doesn't take `impl Trait` arguments: they make the function generic; name a type",
        ));
    }
    let referent = match ty {
        Type::Reference(reference) => {
            if reference.mutability.is_some() {
                return Err(Error::new_spanned(
                    reference,
                    "#[cached] doesn't take `&mut` arguments: a hit would leave them unchanged",
                ));
            }
            if let Type::TraitObject(object) = &*reference.elem {
                return Err(Error::new_spanned(
                    object,
                    "#[cached] can't copy a `dyn Trait` for the load: take an `Arc<dyn Trait>` and say \
                     what the key is with `key = ...`",
                ));
            }
            let is_static = reference.lifetime.as_ref().is_some_and(|lifetime| lifetime.ident == "static");
            (!is_static).then(|| (*reference.elem).clone())
        }
        _ => None,
    };
    let inside = "#[cached] copies `&T` arguments for the load, but not references inside of another type: \
                  take a type that owns its data, like `Option<String>` for `Option<&str>`";
    match Borrowed::find(referent.as_ref().unwrap_or(ty), inside) {
        Some(error) => Err(error),
        None => Ok(Argument { name, ty: ty.clone(), referent, pattern }),
    }
}

/// Whether `Self` occurs outside of types that the tokens declare: then they stand in an `impl`.
fn mentions_self(tokens: TokenStream) -> bool {
    let mut is_in_item = false;
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => {
            is_in_item |= ["impl", "trait", "struct", "enum", "union"].iter().any(|keyword| ident == keyword);
            !is_in_item && ident == "Self"
        }
        TokenTree::Group(group) => {
            let is_skipped = is_in_item;
            is_in_item &= group.delimiter() != Delimiter::Brace;
            !is_skipped && mentions_self(group.stream())
        }
        TokenTree::Punct(punct) => {
            is_in_item &= punct.as_char() != ';';
            false
        }
        TokenTree::Literal(_) => false,
    })
}
