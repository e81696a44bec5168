//! Writes the cached function and its companions.
//!
//! The body moves, unchanged and with its signature, into `f_uncached`; everything else is glue around it,
//! whose pieces stand in `glue.rs`.

use crate::function::Function;
use crate::glue::{Glue, Place};
use crate::options::Options;
use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use std::hash::{DefaultHasher, Hash, Hasher};
use syn::spanned::Spanned;
use syn::{FnArg, parse_quote};

pub(crate) fn expand(function: &Function, options: &Options) -> TokenStream {
    let glue = Glue::new(function, options);
    let parts = [
        cached(&glue),
        uncached(&glue),
        flight(&glue),
        if_cached(&glue),
        prime(&glue),
        invalidate(&glue),
        refresh(&glue),
        cache(&glue),
    ];
    quote!(#(#parts)*)
}

/// The function itself.
fn cached(glue: &Glue<'_>) -> TokenStream {
    let attributes = glue.attributes(Place::Front);
    let (name, returns) = (&glue.function.item.sig.ident, &glue.function.returns.full);
    let body = through_the_cache(glue, &quote!(load), &quote!(load_blocking));
    let (witness, witnessed) = stands_in_a_module(glue);
    let body = quote!(#witnessed #body);
    let cached = glue.sibling(&attributes, name, None, &quote!(#returns), &body);
    quote!(#witness #cached)
}

/// A function, and a use of it that compiles only where siblings are called without `Self::`. In an `impl` that
/// use says what to write; without it the siblings of a cached function of the same name, outside of the
/// `impl`, would be called. The name has a hash of the function, so that no other has the same.
fn stands_in_a_module(glue: &Glue<'_>) -> (TokenStream, TokenStream) {
    if glue.function.is_associated() {
        return (TokenStream::new(), TokenStream::new());
    }
    let item = &glue.function.item;
    let mut hasher = DefaultHasher::new();
    item.to_token_stream().to_string().hash(&mut hasher);
    let hash = hasher.finish();
    let name = quote::format_ident!("__in_an_impl_write_cached_associated_on_{}_{hash:x}", item.sig.ident);
    let name = Ident::new(&name.to_string(), Span::call_site());
    let everywhere = glue.attributes(Place::Everywhere);
    let witness = quote!(#everywhere #[doc(hidden)] #[allow(non_snake_case)] fn #name() {});
    (witness, quote!(let _: fn() = #name;))
}

fn refresh(glue: &Glue<'_>) -> TokenStream {
    let doc = glue.doc(
        "Runs `{}`, whatever is cached, and keeps the outcome. It joins no load that is under way; later \
         callers join this one.",
    );
    let (name, returns) = (glue.function.sibling("refresh"), &glue.function.returns.full);
    let body = through_the_cache(glue, &quote!(reload), &quote!(reload_blocking));
    glue.sibling(&doc, &name, None, &quote!(#returns), &body)
}

fn through_the_cache(glue: &Glue<'_>, load: &TokenStream, load_blocking: &TokenStream) -> TokenStream {
    let Glue { function, options, cache, key, found, error, value, .. } = glue;
    let (take_cache, make_key, entry_options, make, direct) =
        (glue.take_cache(), glue.make_key(), glue.entry_options(), glue.make(), glue.direct());
    let bypass = options.condition.as_ref().map(|condition| {
        let condition = glue.bound(&quote!(#condition));
        let is_met = quote_spanned!(condition.span()=> let #found: bool = #condition;);
        quote!(#is_met if !#found { return #direct; })
    });
    let load = match glue.is_async() {
        true => quote!(::larder::__macros::#load(#cache, &#key, #entry_options, #make).await),
        false => quote!(::larder::__macros::#load_blocking(#cache, &#key, #entry_options, #make)),
    };
    let name = &function.item.sig.ident;
    let fall_back = quote! {
        ::larder::__macros::fall_back(
            ::core::concat!(::core::module_path!(), "::", ::core::stringify!(#name)),
            &#error,
        );
        #direct
    };
    let returns = &function.returns;
    let finish = match (&returns.error, returns.is_optional) {
        (Some(of), is_optional) => {
            let finish = if is_optional { quote!(finish_fallible_optional) } else { quote!(finish_fallible) };
            let stored = &returns.value;
            // Spanned where the bound that may be missing is the author's to add.
            let finish = quote_spanned!(of.span()=> ::larder::__macros::#finish::<#stored, #of>);
            quote! {{
                use ::larder::__macros::{RecoverClone as _, RecoverOnce as _};
                #finish(#found, (&&::larder::__macros::ErrorOf::<#of>::THIS).recover())
            }}
        }
        (None, true) => quote! {
            match #found {
                ::core::result::Result::Ok(#value) => #value,
                ::core::result::Result::Err(#error) => { #fall_back }
            }
        },
        (None, false) => quote! {
            match #found {
                ::core::result::Result::Ok(::core::option::Option::Some(#value)) => #value,
                ::core::result::Result::Ok(::core::option::Option::None) => #direct,
                ::core::result::Result::Err(#error) => { #fall_back }
            }
        },
    };
    quote! {
        #bypass
        #take_cache
        let #found = match #make_key {
            ::core::result::Result::Ok(#key) => #load,
            ::core::result::Result::Err(#error) => ::core::result::Result::Err(#error),
        };
        #finish
    }
}

/// The body, as it was written.
fn uncached(glue: &Glue<'_>) -> TokenStream {
    let (everywhere, attributes) = (glue.attributes(Place::Everywhere), glue.attributes(Place::Body));
    let doc = glue.doc("What `{}` does, without its cache.");
    let mut sig = glue.function.item.sig.clone();
    sig.ident = glue.function.sibling("uncached");
    for input in &mut sig.inputs {
        // An argument that only the key or a tag needs is not unused.
        if let FnArg::Typed(argument) = input
            && glue.options.mention(&argument.pat)
        {
            argument.attrs.push(parse_quote!(#[allow(unused_variables)]));
        }
    }
    let (vis, block) = (&glue.function.item.vis, &glue.function.item.block);
    // What is to be said of errors, panics and the value stands in the docs of the function itself.
    let lints = quote! {
        #[allow(
            dead_code,
            clippy::missing_errors_doc,
            clippy::missing_panics_doc,
            clippy::must_use_candidate
        )]
    };
    quote!(#doc #everywhere #attributes #lints #vis #sig #block)
}

/// The body on arguments that it owns: what a flight runs. Its future is erased, because that of a function
/// that calls itself would contain itself.
fn flight(glue: &Glue<'_>) -> TokenStream {
    let function = glue.function;
    let (name, path, uncached) = (glue.flight_name(), &function.path, function.sibling("uncached"));
    let (returns, where_clause) = (&function.returns.full, function.where_without_lifetimes());
    let owned = glue.owned_names();
    let types = function.all().map(|argument| {
        let ty = &argument.ty;
        match &argument.referent {
            Some(referent) => quote_spanned!(ty.span()=> <#referent as ::std::borrow::ToOwned>::Owned),
            None => quote!(#ty),
        }
    });
    let arguments = function.all().zip(&owned).map(|(argument, owned)| match &argument.referent {
        Some(referent) => quote!(::std::borrow::Borrow::<#referent>::borrow(&#owned)),
        None => quote!(#owned),
    });
    let call = quote!(#path #uncached(#(#arguments),*));
    let (everywhere, lints) = (glue.attributes(Place::Everywhere), glue.lints());
    let parameters = quote!(#(#owned: #types),*);
    if !glue.is_async() {
        return quote! {
            #everywhere #lints #[doc(hidden)]
            fn #name(#parameters) -> #returns #where_clause { #call }
        };
    }
    // Spanned where an author looks who is told that the body's future is not `Send`.
    let body = quote_spanned! {function.item.sig.ident.span()=>
        ::std::boxed::Box::pin(async move { #call.await })
    };
    quote! {
        #everywhere #lints #[doc(hidden)]
        fn #name(#parameters) -> ::larder::__macros::BoxFuture<#returns> #where_clause { #body }
    }
}

fn if_cached(glue: &Glue<'_>) -> TokenStream {
    let (take_cache, make_key, key, value) =
        (glue.take_cache(), glue.make_key(), &glue.key, &glue.function.returns.value);
    let get = glue.ask(&quote!(get(&#key)));
    let body = quote! {
        #take_cache
        match #make_key {
            ::core::result::Result::Ok(#key) => #get,
            ::core::result::Result::Err(_) => ::core::option::Option::None,
        }
    };
    let doc = glue.doc("The value of `{}` that is cached and fresh. Runs nothing.");
    let returns = quote!(::core::option::Option<#value>);
    glue.sibling(&doc, &glue.function.sibling("if_cached"), None, &returns, &body)
}

fn prime(glue: &Glue<'_>) -> TokenStream {
    let Glue { key, value, keep, .. } = glue;
    let (take_cache, make_key, make_keep, entry_options) =
        (glue.take_cache(), glue.make_key(), glue.make_keep(), glue.entry_options());
    let ty = &glue.function.returns.value;
    let set = glue.ask(&quote!(set_with(#key, #value, &#keep)));
    let body = quote! {
        #take_cache
        let #key = #make_key?;
        let #keep = #make_keep.on(#entry_options)?;
        #set
    };
    let doc = glue.doc(
        "Puts a value into the cache of `{}`, as if it had returned it.\n\n# Errors\nThose of \
         `larder::Cache::set_with`.",
    );
    let returns = quote!(::larder::Result<::larder::Written>);
    glue.sibling(&doc, &glue.function.sibling("prime"), Some(&quote!(#value: #ty)), &returns, &body)
}

fn invalidate(glue: &Glue<'_>) -> TokenStream {
    let (take_cache, make_key, key) = (glue.take_cache(), glue.make_key(), &glue.key);
    let remove = glue.ask(&quote!(remove(&#key)));
    let body = quote! {
        #take_cache
        let #key = #make_key?;
        #remove
    };
    let doc = glue.doc(
        "Removes what `{}` keeps for these arguments; a load under way doesn't bring it back.\n\n# Errors\n\
         Those of `larder::Cache::remove`.",
    );
    let returns = quote!(::larder::Result<::larder::Removal>);
    glue.sibling(&doc, &glue.function.sibling("invalidate"), None, &returns, &body)
}

/// The cache: the function's own in a static, or the one that the attribute names.
fn cache(glue: &Glue<'_>) -> TokenStream {
    let Glue { function, options, .. } = glue;
    let (name, vis, value) = (function.sibling("cache"), &function.item.vis, &function.returns.value);
    let (everywhere, lints, where_clause) =
        (glue.attributes(Place::Everywhere), glue.lints(), function.where_without_lifetimes());
    let doc = glue.doc("The cache of `{}`: statistics, tags, clearing, and whatever else it can do.");
    let (receiver, ty) = (glue.cache_receiver(), glue.cache_type());
    if let Some(given) = &options.cache {
        let given = quote_spanned! {given.span()=>
            ::core::clone::Clone::clone({
                let given: &#ty = &(#given);
                given
            })
        };
        let given = match &options.namespace {
            Some(namespace) => quote! {
                static NAMESPACE: ::std::sync::LazyLock<::larder::key::Namespace> =
                    ::std::sync::LazyLock::new(|| ::larder::__macros::named(#namespace));
                #given.namespace(&NAMESPACE)
            },
            None => given,
        };
        return quote! {
            #doc #everywhere #lints
            #vis fn #name(#receiver) -> #ty #where_clause { #given }
        };
    }
    let owner = glue.owner();
    let function_name = function.item.sig.ident.to_string();
    let namespace = match &options.namespace {
        Some(namespace) => quote!(::larder::__macros::named(#namespace)),
        None => quote!(::larder::__macros::namespace_of(#owner, #function_name)),
    };
    let entries_max = match &options.entries_max {
        Some(entries_max) => quote!(::core::option::Option::Some(#entries_max)),
        None => quote!(::core::option::Option::None),
    };
    let entry_options = glue.with_fields(&quote!(::core::default::Default::default()));
    let own_cache = if options.has_tenants { quote!(own_cache_of_tenants) } else { quote!(own_cache) };
    let build = quote!(::larder::__macros::#own_cache(#namespace, #entries_max, #entry_options));
    let body = if function.is_associated() {
        quote! {
            static CACHES: ::larder::__macros::Caches = ::larder::__macros::Caches::new();
            CACHES.of::<Self, #value>(|| #build)
        }
    } else {
        quote! {
            static CACHE: ::std::sync::LazyLock<#ty> =
                ::std::sync::LazyLock::new(|| #build);
            &CACHE
        }
    };
    quote! {
        #doc #everywhere #lints
        #vis fn #name() -> &'static #ty #where_clause { #body }
    }
}
