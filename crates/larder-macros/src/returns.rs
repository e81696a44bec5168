//! What a function returns, and which part of it is cached.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Error, GenericArgument, PathArguments, ReturnType, Type, TypeReference, visit};

/// The return type of a cached function. Told apart by name: a type alias is a `Result` when it is called so.
pub(crate) struct Returns {
    pub(crate) full: Type,
    /// The type in the cache.
    pub(crate) value: TokenStream,
    /// The error of a `Result`.
    pub(crate) error: Option<TokenStream>,
    pub(crate) is_optional: bool,
}

impl Returns {
    pub(crate) fn read(output: &ReturnType, function: &syn::Ident) -> syn::Result<Self> {
        let full = match output {
            ReturnType::Type(_, full) => (**full).clone(),
            ReturnType::Default => return Err(Error::new(function.span(), NOTHING)),
        };
        match &full {
            Type::Tuple(tuple) if tuple.elems.is_empty() => return Err(Error::new_spanned(&full, NOTHING)),
            Type::Never(_) => return Err(Error::new_spanned(&full, NOTHING)),
            _ => {}
        }
        if let Some(error) = Borrowed::find(
            &full,
            "#[cached] keeps what the function returns, which must own its data: return `String` in place of `&str`, `Vec<T>` of `&[T]`",
        ) {
            return Err(error);
        }
        if let Some(found) = impl_trait(&full) {
            return Err(Error::new_spanned(
                found,
                "#[cached] has to name what it keeps: return a concrete type in place of `impl Trait`",
            ));
        }
        Ok(Self::split(full))
    }

    fn split(full: Type) -> Self {
        if let Some(arguments) = generic(&full, "Result") {
            let error = match arguments.get(1) {
                Some(error) => quote!(#error),
                None => quote!(<#full as ::larder::__macros::Fallible>::Error),
            };
            let (value, is_optional) = match arguments.first() {
                Some(ok) => optional(ok).map_or_else(|| (quote!(#ok), false), |some| (quote!(#some), true)),
                None => (quote!(<#full as ::larder::__macros::Fallible>::Value), false),
            };
            return Returns { value, error: Some(error), is_optional, full };
        }
        let (value, is_optional) =
            optional(&full).map_or_else(|| (quote!(#full), false), |some| (quote!(#some), true));
        Returns { value, error: None, is_optional, full }
    }
}

const NOTHING: &str = "#[cached] needs a function that returns something: there is nothing to keep of `()`";

fn optional(ty: &Type) -> Option<Type> {
    generic(ty, "Option")?.into_iter().next()
}

/// The type arguments of a path that ends in `name`.
fn generic(ty: &Type, name: &str) -> Option<Vec<Type>> {
    let ty = match ty {
        Type::Paren(inner) => return generic(&inner.elem, name),
        Type::Group(inner) => return generic(&inner.elem, name),
        Type::Path(path) => path,
        _ => return None,
    };
    let last = ty.path.segments.last()?;
    if last.ident != name {
        return None;
    }
    let PathArguments::AngleBracketed(arguments) = &last.arguments else { return Some(Vec::new()) };
    let types = arguments.args.iter().filter_map(|argument| match argument {
        GenericArgument::Type(ty) => Some(ty.clone()),
        _ => None,
    });
    Some(types.collect())
}

/// Finds data that is borrowed for less than `'static`.
pub(crate) struct Borrowed {
    message: &'static str,
    error: Option<Error>,
}

impl Borrowed {
    pub(crate) fn find(ty: &Type, message: &'static str) -> Option<Error> {
        let mut search = Borrowed { message, error: None };
        visit::Visit::visit_type(&mut search, ty);
        search.error
    }
}

impl<'ast> visit::Visit<'ast> for Borrowed {
    fn visit_type_reference(&mut self, reference: &'ast TypeReference) {
        if reference.lifetime.as_ref().is_none_or(|lifetime| lifetime.ident != "static") {
            self.error.get_or_insert_with(|| Error::new_spanned(reference, self.message));
        }
        visit::visit_type_reference(self, reference);
    }

    fn visit_lifetime(&mut self, lifetime: &'ast syn::Lifetime) {
        if lifetime.ident != "static" {
            self.error.get_or_insert_with(|| Error::new(lifetime.span(), self.message));
        }
    }

    // Their lifetimes are their own: nothing is borrowed.
    fn visit_type_fn_ptr(&mut self, _: &'ast syn::TypeFnPtr) {}
}

/// The first `impl Trait` in a type.
pub(crate) fn impl_trait(ty: &Type) -> Option<syn::TypeImplTrait> {
    struct Search(Option<syn::TypeImplTrait>);
    impl<'ast> visit::Visit<'ast> for Search {
        fn visit_type_impl_trait(&mut self, found: &'ast syn::TypeImplTrait) {
            self.0.get_or_insert_with(|| found.clone());
        }
    }
    let mut search = Search(None);
    visit::Visit::visit_type(&mut search, ty);
    search.0
}
