//! How the error of a body travels through a flight to all who wait for it.

use crate::error::{Error, ErrorKind, Result};
use std::fmt::{self, Debug, Display};
use std::marker::PhantomData;
use std::sync::{Mutex, PoisonError};

/// The outcome of a function that returns a `Result`.
///
/// # Errors
/// The body's own, or the cache's as one.
pub fn finish_fallible<V, E>(
    found: Result<Option<V>>,
    recover: fn(&Carried<E>) -> Option<E>,
) -> std::result::Result<V, E>
where
    E: From<Error> + Send + 'static,
{
    finish_fallible_optional(found, recover)?.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, "load").message("an absence is remembered for this key").into()
    })
}

/// The outcome of a function that returns a `Result` of an `Option`.
///
/// # Errors
/// The body's own, or the cache's as one.
pub fn finish_fallible_optional<V, E>(
    found: Result<Option<V>>,
    recover: fn(&Carried<E>) -> Option<E>,
) -> std::result::Result<Option<V>, E>
where
    E: From<Error> + Send + 'static,
{
    found.map_err(|error| {
        let carried = std::error::Error::source(&error).and_then(|source| source.downcast_ref());
        carried.and_then(recover).unwrap_or_else(|| error.into())
    })
}

/// The error of a body on its way through a flight, to all who wait for it.
pub struct Carried<E> {
    error: Mutex<Option<E>>,
    text: String,
}

impl<E> Carried<E> {
    pub(super) fn new(error: E, describe: fn(&E) -> String) -> Self {
        Carried { text: describe(&error), error: Mutex::new(Some(error)) }
    }

    fn with<T>(&self, then: impl FnOnce(&mut Option<E>) -> T) -> T {
        then(&mut self.error.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<E> Debug for Carried<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<E> Display for Carried<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<E> std::error::Error for Carried<E> {}

/// What can be done with an error type. The attribute calls these methods on `&&ErrorOf` or `&&&ErrorOf`:
/// method look-up then takes the first of the traits below whose bound holds.
pub struct ErrorOf<E>(PhantomData<fn(E)>);

impl<E> ErrorOf<E> {
    /// The type's.
    pub const THIS: Self = ErrorOf(PhantomData);
}

/// Every caller gets a clone.
pub trait RecoverClone<E> {
    /// How.
    fn recover(&self) -> fn(&Carried<E>) -> Option<E>;
}

impl<E: Clone> RecoverClone<E> for &ErrorOf<E> {
    fn recover(&self) -> fn(&Carried<E>) -> Option<E> {
        |carried| carried.with(|error| error.clone())
    }
}

/// One caller gets the error, the others its text.
pub trait RecoverOnce<E> {
    /// How.
    fn recover(&self) -> fn(&Carried<E>) -> Option<E>;
}

impl<E> RecoverOnce<E> for ErrorOf<E> {
    fn recover(&self) -> fn(&Carried<E>) -> Option<E> {
        |carried| carried.with(Option::take)
    }
}

/// The text of an error for people.
pub trait DescribeDisplay<E> {
    /// How.
    fn describe(&self) -> fn(&E) -> String;
}

impl<E: Display> DescribeDisplay<E> for &&ErrorOf<E> {
    fn describe(&self) -> fn(&E) -> String {
        |error| error.to_string()
    }
}

/// The text of an error for its programmers.
pub trait DescribeDebug<E> {
    /// How.
    fn describe(&self) -> fn(&E) -> String;
}

impl<E: Debug> DescribeDebug<E> for &ErrorOf<E> {
    fn describe(&self) -> fn(&E) -> String {
        |error| format!("{error:?}")
    }
}

/// The text of an error that has none.
pub trait DescribeType<E> {
    /// How.
    fn describe(&self) -> fn(&E) -> String;
}

impl<E> DescribeType<E> for ErrorOf<E> {
    fn describe(&self) -> fn(&E) -> String {
        |_| std::any::type_name::<E>().to_owned()
    }
}
