//! Stands in for `protection` where the feature `encryption` is off: there is no way to make one.

use super::header::Frame;
use super::{KeyId, Refused, Sealing};
use crate::key::EntryKey;
use std::borrow::Cow;

pub(super) const EXTENSION_BYTES: usize = 0;

#[derive(Clone, Debug)]
pub(crate) enum Protection {}

impl Protection {
    pub(crate) fn is_strict(&self) -> bool {
        match *self {}
    }

    pub(crate) fn reseals_on_read(&self) -> bool {
        match *self {}
    }

    pub(super) fn sealer(&self) -> Sealer {
        match *self {}
    }

    pub(super) fn is_current(&self, _: Option<KeyId>, _: Sealing) -> bool {
        match *self {}
    }

    pub(super) fn open<'s>(&self, _: &EntryKey, _: &Frame<'s>) -> Result<Cow<'s, [u8]>, Refused> {
        match *self {}
    }
}

pub(super) enum Sealer {}

impl Sealer {
    pub(super) fn key_id(&self) -> KeyId {
        match *self {}
    }

    pub(super) fn sealing(&self) -> Sealing {
        match *self {}
    }

    pub(super) fn protect(&self, _: &EntryKey, _: &[u8], _: &mut [u8], _: &mut [u8]) {
        match *self {}
    }
}
