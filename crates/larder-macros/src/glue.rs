//! Pieces of the generated functions.
//!
//! Local names are hygienic: a function's own names, which keys and tags are written in, can't meet them.

use crate::function::Function;
use crate::options::Options;
use crate::returns::Returns;
use proc_macro2::{Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::Attribute;
use syn::spanned::Spanned;

pub(crate) struct Glue<'a> {
    pub(crate) function: &'a Function,
    pub(crate) options: &'a Options,
    pub(crate) cache: Ident,
    pub(crate) key: Ident,
    pub(crate) keep: Ident,
    pub(crate) found: Ident,
    pub(crate) value: Ident,
    pub(crate) error: Ident,
}

/// Where an attribute of the function goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The function that callers call.
    Front,
    /// The function with the body.
    Body,
    /// These and all companions.
    Everywhere,
}

impl Place {
    fn of(attribute: &Attribute) -> Self {
        let is_one_of = |names: &[&str]| names.iter().any(|name| attribute.path().is_ident(name));
        if is_one_of(&["doc", "must_use", "deprecated"]) {
            Place::Front
        } else if is_one_of(&["cfg", "allow", "warn", "deny", "forbid"]) {
            Place::Everywhere
        } else {
            Place::Body
        }
    }
}

impl<'a> Glue<'a> {
    pub(crate) fn new(function: &'a Function, options: &'a Options) -> Self {
        let local = |name| Ident::new(name, Span::mixed_site());
        Glue {
            function,
            options,
            cache: local("cache"),
            key: local("key"),
            keep: local("keep"),
            found: local("found"),
            value: local("value"),
            error: local("error"),
        }
    }

    pub(crate) fn is_async(&self) -> bool {
        self.function.item.sig.asyncness.is_some()
    }

    pub(crate) fn attributes(&self, place: Place) -> TokenStream {
        let here = self.function.item.attrs.iter().filter(|attribute| Place::of(attribute) == place);
        quote!(#(#here)*)
    }

    /// What generated code may look like that people's may not.
    pub(crate) fn lints(&self) -> TokenStream {
        quote! {
            #[allow(dead_code, unused_variables, unused_mut, unused_parens, clippy::all, clippy::pedantic)]
        }
    }

    pub(crate) fn doc(&self, template: &str) -> TokenStream {
        let text = template.replace("{}", &self.function.item.sig.ident.to_string());
        quote!(#[doc = #text])
    }

    /// A function with the signature of the cached one, but for what is given here.
    pub(crate) fn sibling(
        &self,
        attributes: &TokenStream,
        name: &Ident,
        last_parameter: Option<&TokenStream>,
        returns: &TokenStream,
        body: &TokenStream,
    ) -> TokenStream {
        let (everywhere, lints) = (self.attributes(Place::Everywhere), self.lints());
        // The author hears when the function itself is never called.
        let lints = match *name == self.function.item.sig.ident {
            true => {
                quote!(#[allow(unused_variables, unused_mut, unused_parens, clippy::all, clippy::pedantic)])
            }
            false => lints,
        };
        let item = &self.function.item;
        let (vis, asyncness, generics) = (&item.vis, &item.sig.asyncness, &item.sig.generics);
        let where_clause = &generics.where_clause;
        let parameters = self.function.parameters();
        quote! {
            #attributes #everywhere #lints
            #vis #asyncness fn #name #generics (#parameters #last_parameter) -> #returns #where_clause { #body }
        }
    }

    /// `inner`, with the names at hand that patterns in the place of arguments bind, as references.
    pub(crate) fn bound(&self, inner: &TokenStream) -> TokenStream {
        let mut patterns = self
            .function
            .arguments
            .iter()
            .filter_map(|argument| argument.pattern.as_ref().map(|pattern| (pattern, &argument.name)))
            .peekable();
        if patterns.peek().is_none() {
            return inner.clone();
        }
        let (patterns, names): (Vec<_>, Vec<_>) = patterns.unzip();
        quote!({ #(let #patterns = &#names;)* #inner })
    }

    /// `cache` becomes the function's.
    pub(crate) fn take_cache(&self) -> TokenStream {
        let Glue { function, cache, .. } = self;
        let (path, name, ty) = (&function.path, function.sibling("cache"), self.cache_type());
        let this = self.cache_receiver().map(|_| quote!(self));
        let by_reference = self.options.cache.as_ref().map(|_| quote!(&));
        quote! {
            let #cache: &#ty = #by_reference #path #name(#this);
        }
    }

    /// Spanned where the author can add what a value lacks.
    pub(crate) fn cache_type(&self) -> TokenStream {
        let Returns { full, value, .. } = &self.function.returns;
        quote_spanned!(full.span()=> ::larder::__macros::FunctionCache<#value>)
    }

    /// The receiver of the function that returns the cache, where it needs one.
    pub(crate) fn cache_receiver(&self) -> Option<TokenStream> {
        let (receiver, _) = self.function.receiver.as_ref()?;
        let given = self.options.cache.as_ref()?;
        mentions_this(given.to_token_stream()).then(|| receiver.to_token_stream())
    }

    /// Calls a method of `cache` that is async, or of its blocking view.
    pub(crate) fn ask(&self, call: &TokenStream) -> TokenStream {
        let cache = &self.cache;
        match self.is_async() {
            true => quote!(#cache.#call.await),
            false => quote!(::larder::__macros::blocking(#cache).#call),
        }
    }

    /// What names the function's type or module.
    pub(crate) fn owner(&self) -> TokenStream {
        match self.function.is_associated() {
            true => quote!(::core::any::type_name::<Self>()),
            false => quote!(::core::module_path!()),
        }
    }

    /// The key of a call: a `larder::Result<EntryKey>`.
    pub(crate) fn make_key(&self) -> TokenStream {
        let cache = &self.cache;
        let arguments = match &self.options.key {
            Some(key) => quote_spanned!(key.span()=> (#key)),
            None => {
                let arguments = self.function.arguments.iter().map(|argument| {
                    let name = &argument.name;
                    quote_spanned!(argument.ty.span()=> &#name)
                });
                quote!((#(#arguments,)*))
            }
        };
        // In a cache of others the function's path keeps its keys apart.
        let key = match (&self.options.cache, &self.options.namespace) {
            (Some(_), None) => {
                let (owner, name) = (self.owner(), self.function.item.sig.ident.to_string());
                quote!((#owner, #name, &#arguments))
            }
            _ => arguments,
        };
        self.bound(&quote!(::larder::key::EntryKey::new(#cache.namespace_name(), &#key)))
    }

    /// The options of a call: a `&EntryOptions`.
    pub(crate) fn entry_options(&self) -> TokenStream {
        let cache = &self.cache;
        if self.options.cache.is_none() || self.options.fields.is_empty() {
            return quote!(::larder::__macros::defaults(#cache));
        }
        let options = self.with_fields(&quote!(#cache.options()));
        quote!(&#options)
    }

    /// Entry options with the attribute's settings.
    pub(crate) fn with_fields(&self, base: &TokenStream) -> TokenStream {
        let options = Ident::new("options", Span::mixed_site());
        let (names, values): (Vec<_>, Vec<_>) = self.options.fields.iter().map(|(n, v)| (n, v)).unzip();
        quote! {{
            let mut #options: ::larder::EntryOptions = #base;
            #(#options.#names = #values;)*
            #options
        }}
    }

    /// What the attribute computes for each load, from the arguments.
    pub(crate) fn make_keep(&self) -> TokenStream {
        let option = |expr: &Option<syn::Expr>| match expr {
            Some(expr) => {
                let expr = self.bound(&quote!(#expr));
                quote!(::core::option::Option::Some(#expr))
            }
            None => quote!(::core::option::Option::None),
        };
        let (ttl, negative_ttl) = (option(&self.options.ttl), option(&self.options.negative_ttl));
        let keeps_none = self.options.cache_none != Some(false);
        let tags =
            self.options.tags.iter().map(|tag| {
                self.bound(&quote_spanned!(tag.span()=> ::std::string::ToString::to_string(&(#tag))))
            });
        quote! {
            ::larder::__macros::Keep {
                ttl: #ttl,
                negative_ttl: #negative_ttl,
                tags: ::std::vec::Vec::from([#(#tags),*]),
                keeps_none: #keeps_none,
            }
        }
    }

    /// Makes the loader: copies the arguments for it, and says what becomes of what the body returns.
    pub(crate) fn make(&self) -> TokenStream {
        let Glue { function, keep, .. } = self;
        let (make_keep, path, flight) = (self.make_keep(), &function.path, self.flight_name());
        let owned = self.owned_names();
        let is_fallible = function.returns.error.is_some();
        let copies = function.all().map(|argument| {
            let name = &argument.name;
            match &argument.referent {
                Some(referent) => {
                    quote_spanned!(argument.ty.span()=> <#referent as ::std::borrow::ToOwned>::to_owned(#name))
                }
                // Nothing but the load needs it.
                None if is_fallible => quote!(#name),
                None => quote_spanned!(argument.ty.span()=> ::core::clone::Clone::clone(&#name)),
            }
        });
        let call = quote!(#path #flight(#(#owned),*));
        let call = if self.is_async() { quote!(#call.await) } else { call };
        let keep_it = match (&function.returns.error, function.returns.is_optional) {
            (None, false) => quote!(#keep.plain(#call)),
            (None, true) => quote!(#keep.optional(#call)),
            (Some(error), is_optional) => {
                let how = if is_optional { quote!(fallible_optional) } else { quote!(fallible) };
                quote! {{
                    use ::larder::__macros::{DescribeDebug as _, DescribeDisplay as _, DescribeType as _};
                    #keep.#how(#call, (&&&::larder::__macros::ErrorOf::<#error>::THIS).describe())
                }}
            }
        };
        let value = &function.returns.value;
        let loader = match self.is_async() {
            true => quote!(move |_: ::larder::LoadContext<#value>| async move { #keep_it }),
            false => quote!(move || #keep_it),
        };
        let capture = is_fallible.then(|| quote!(move));
        quote! {
            #capture || {
                let #keep = #make_keep;
                #(let #owned = #copies;)*
                #loader
            }
        }
    }

    /// The body, without the cache.
    pub(crate) fn direct(&self) -> TokenStream {
        let function = self.function;
        let (path, uncached) = (&function.path, function.sibling("uncached"));
        let names = function.all().map(|argument| &argument.name);
        let call = quote!(#path #uncached(#(#names),*));
        match self.is_async() {
            // Boxed, or the future of a function that calls itself would contain itself.
            true => quote!(::std::boxed::Box::pin(#call).await),
            false => call,
        }
    }

    pub(crate) fn flight_name(&self) -> Ident {
        format_ident!("__{}_flight", self.function.item.sig.ident)
    }

    pub(crate) fn owned_names(&self) -> Vec<Ident> {
        let names = 0..self.function.all().count();
        names.map(|place| format_ident!("owned_{place}", span = Span::mixed_site())).collect()
    }
}

/// Whether `self` occurs.
fn mentions_this(tokens: TokenStream) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => ident == "self",
        TokenTree::Group(group) => mentions_this(group.stream()),
        _ => false,
    })
}
