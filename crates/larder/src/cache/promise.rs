//! A value that is not there yet, for any number of waiters on any executor.

use crate::error::{Error, ErrorKind, Result};
use crate::sync::Mutex;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Fulfilled at most once; every waiter gets a clone.
pub(crate) struct Promise<T>(Mutex<State<T>>);

/// What a promise is a part of, so that both are one allocation.
pub(crate) trait Promises {
    type Output: Clone;

    fn promise(&self) -> &Promise<Self::Output>;
}

impl<T: Clone> Promises for Promise<T> {
    type Output = T;

    fn promise(&self) -> &Promise<T> {
        self
    }
}

struct State<T> {
    value: Option<T>,
    /// The waker of place 0: most promises have one waiter, who then costs no allocation.
    first: Option<Waker>,
    /// Those of the places from 1 on.
    others: Vec<Option<Waker>>,
    waiting: usize,
}

impl<T> State<T> {
    fn place(&mut self, place: usize) -> Option<&mut Option<Waker>> {
        match place.checked_sub(1) {
            None => Some(&mut self.first),
            Some(at) => self.others.get_mut(at),
        }
    }
}

impl<T: Clone> Promise<T> {
    pub(crate) fn new() -> Self {
        Promise(Mutex::new(State { value: None, first: None, others: Vec::new(), waiting: 0 }))
    }

    /// Sets the value, unless it is set, and wakes all waiters.
    pub(crate) fn fulfil(&self, value: T) {
        let (first, others) = {
            let mut state = self.0.lock();
            if state.value.is_some() {
                return;
            }
            state.value = Some(value);
            (state.first.take(), std::mem::take(&mut state.others))
        };
        first.into_iter().chain(others.into_iter().flatten()).for_each(Waker::wake);
    }

    /// How many wait now.
    pub(crate) fn waiting(&self) -> usize {
        self.0.lock().waiting
    }
}

/// The duty to fulfil a promise. Dropping it fulfils the promise with an error: nobody may wait for ever.
pub(crate) struct Duty<T: Clone> {
    promise: Arc<Promise<Result<T>>>,
    operation: &'static str,
}

impl<T: Clone> Duty<T> {
    pub(crate) fn new(promise: &Arc<Promise<Result<T>>>, operation: &'static str) -> Self {
        Duty { promise: Arc::clone(promise), operation }
    }

    pub(crate) fn done(self, output: T) {
        self.promise.fulfil(Ok(output));
    }
}

impl<T: Clone> Drop for Duty<T> {
    fn drop(&mut self) {
        self.promise.fulfil(Err(abandoned(self.operation)));
    }
}

/// Why a task of larder's is dropped before its end: it panics right now, or its runtime is gone.
pub(crate) fn abandoned(operation: &'static str) -> Error {
    if std::thread::panicking() {
        return Error::new(ErrorKind::Panicked, operation)
            .message("a backend, weigher, listener or encoder panicked");
    }
    Error::new(ErrorKind::Closed, operation).message("the runtime that ran it was shut down")
}

/// A future of the value that something [`Promises`]. Dropping it leaves nothing behind.
pub(crate) struct Wait<P: Promises> {
    source: Arc<P>,
    /// Where its waker is kept.
    place: Option<usize>,
}

impl<P: Promises> Wait<P> {
    pub(crate) fn new(source: &Arc<P>) -> Self {
        source.promise().0.lock().waiting += 1;
        Wait { source: Arc::clone(source), place: None }
    }
}

impl<P: Promises> Future for Wait<P> {
    type Output = P::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<P::Output> {
        let this = &mut *self;
        let mut state = this.source.promise().0.lock();
        if let Some(value) = &state.value {
            return Poll::Ready(value.clone());
        }
        let place = *this.place.get_or_insert_with(|| {
            // A place is empty when nobody has it: a waker stays until its waiter is dropped.
            if state.first.is_none() {
                return 0;
            }
            state.others.push(None);
            state.others.len()
        });
        if let Some(slot) = state.place(place)
            && !slot.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            *slot = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl<P: Promises> Drop for Wait<P> {
    fn drop(&mut self) {
        let mut state = self.source.promise().0.lock();
        state.waiting -= 1;
        // Once fulfilled, the wakers are gone and `place` means nothing.
        if let Some(slot) = self.place.and_then(|place| state.place(place)) {
            *slot = None;
        }
        while state.others.last().is_some_and(Option::is_none) {
            state.others.pop();
        }
    }
}
