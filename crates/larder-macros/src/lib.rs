//! The `#[cached]` attribute of larder.
//!
//! A function goes through three steps: `function.rs` reads it and refuses what can't be cached,
//! `options.rs` reads the attribute's arguments, `expand.rs` writes the cached function and its companions.
//! Everything that needs no syntax stands in `larder::__macros`.

mod duration;
mod expand;
mod function;
mod glue;
mod options;
mod returns;

use proc_macro::TokenStream;

/// Caches what a function returns. Documented where it is used from: `larder::cached`.
#[proc_macro_attribute]
pub fn cached(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let item = proc_macro2::TokenStream::from(item);
    match expand(arguments.into(), item.clone()) {
        Ok(expanded) => expanded.into(),
        Err(error) => {
            // With the function still there, its callers don't add errors of their own.
            let error = error.into_compile_error();
            quote::quote!(#error #item).into()
        }
    }
}

fn expand(
    arguments: proc_macro2::TokenStream,
    item: proc_macro2::TokenStream,
) -> syn::Result<proc_macro2::TokenStream> {
    let item = syn::parse2::<syn::ItemFn>(item).map_err(|error| {
        syn::Error::new(error.span(), format!("#[cached] goes on a function with a body ({error})"))
    })?;
    let options = syn::parse2::<options::Options>(arguments)?;
    let function = function::Function::read(item, &options)?;
    Ok(expand::expand(&function, &options))
}
