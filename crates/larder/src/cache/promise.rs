//! A value that is not there yet, for any number of waiters on any executor.

use crate::error::{Error, ErrorKind, Result};
use crate::sync::Mutex;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Fulfilled at most once; every waiter gets a clone.
pub(crate) struct Promise<T>(Mutex<State<T>>);

struct State<T> {
    value: Option<T>,
    waiters: Vec<Option<Waker>>,
    waiting: usize,
}

impl<T: Clone> Promise<T> {
    pub(crate) fn new() -> Self {
        Promise(Mutex::new(State { value: None, waiters: Vec::new(), waiting: 0 }))
    }

    /// Sets the value, unless it is set, and wakes all waiters.
    pub(crate) fn fulfil(&self, value: T) {
        let waiters = {
            let mut state = self.0.lock();
            if state.value.is_some() {
                return;
            }
            state.value = Some(value);
            std::mem::take(&mut state.waiters)
        };
        waiters.into_iter().flatten().for_each(Waker::wake);
    }

    /// How many wait now.
    pub(crate) fn waiting(&self) -> usize {
        self.0.lock().waiting
    }

    /// A future of the value. Dropping it leaves nothing behind.
    pub(crate) fn wait(self: &Arc<Self>) -> Wait<T> {
        self.0.lock().waiting += 1;
        Wait { promise: Arc::clone(self), place: None }
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

pub(crate) struct Wait<T: Clone> {
    promise: Arc<Promise<T>>,
    /// Where its waker is kept.
    place: Option<usize>,
}

impl<T: Clone> Future for Wait<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let this = &mut *self;
        let mut state = this.promise.0.lock();
        if let Some(value) = &state.value {
            return Poll::Ready(value.clone());
        }
        match this.place {
            Some(place) => {
                let slot = &mut state.waiters[place];
                if !slot.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    *slot = Some(cx.waker().clone());
                }
            }
            None => {
                this.place = Some(state.waiters.len());
                state.waiters.push(Some(cx.waker().clone()));
            }
        }
        Poll::Pending
    }
}

impl<T: Clone> Drop for Wait<T> {
    fn drop(&mut self) {
        let mut state = self.promise.0.lock();
        state.waiting -= 1;
        // Once fulfilled, the wakers are gone and `place` means nothing.
        if let Some(slot) = self.place.and_then(|place| state.waiters.get_mut(place)) {
            *slot = None;
        }
        while state.waiters.last().is_some_and(Option::is_none) {
            state.waiters.pop();
        }
    }
}
