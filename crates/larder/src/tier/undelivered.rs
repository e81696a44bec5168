//! What a tier that is set aside has not heard of yet. Keeps removals, never delivers them.

use super::Removal;
use crate::backend::Mark;
use crate::bus::Note;
use crate::key::{EntryKey, Namespace, Pattern};
use crate::rules::{Rule, holds};
use std::collections::{HashMap, HashSet};

/// Most keys and marks kept for a tier that is set aside, some megabytes. Past it, namespaces are cleared.
const UNDELIVERED_MAX: usize = 10_000;

/// Removals that the tier has to hear of before it is read again. The numbers tell a later removal of the
/// same key from the one that a replay has just delivered.
#[derive(Clone, Debug, Default)]
pub(super) struct Undelivered {
    next: u64,
    pub(super) keys: HashMap<EntryKey, u64>,
    pub(super) marks: HashMap<(Namespace, Mark), u64>,
    pub(super) patterns: Vec<(Namespace, Pattern, u64)>,
}

impl Undelivered {
    pub(super) fn keep(&mut self, removal: &Removal<'_>) {
        if !holds(Rule::UndeliveredIsKept) {
            return;
        }
        self.next += 1;
        let number = self.next;
        match *removal {
            Removal::Keys(keys) => self.keys.extend(keys.iter().map(|key| (key.clone(), number))),
            Removal::Mark(namespace, mark) => {
                self.marks.insert((namespace.clone(), mark.clone()), number);
            }
            Removal::Matching(namespace, pattern) => {
                self.patterns.push((namespace.clone(), pattern.clone(), number));
            }
        }
        if self.len() > UNDELIVERED_MAX {
            self.collapse(number);
        }
    }

    /// All of it, for the journal.
    pub(super) fn notes(&self) -> Vec<Note> {
        let keys = self.keys.keys().map(|key| Note::Key(key.clone()));
        let marks = self.marks.keys().map(|(namespace, mark)| Note::Mark(namespace.clone(), mark.clone()));
        let matching = |(namespace, pattern, _): &(Namespace, Pattern, u64)| {
            Note::Matching(namespace.clone(), pattern.clone())
        };
        keys.chain(marks).chain(self.patterns.iter().map(matching)).collect()
    }

    /// Too much to remember one by one: the namespaces concerned are cleared instead.
    fn collapse(&mut self, number: u64) {
        let keys = std::mem::take(&mut self.keys).into_keys().map(|key| key.namespace().clone());
        let marks = std::mem::take(&mut self.marks).into_keys().map(|(namespace, _)| namespace);
        let patterns = std::mem::take(&mut self.patterns).into_iter().map(|(namespace, ..)| namespace);
        let namespaces: HashSet<Namespace> = keys.chain(marks).chain(patterns).collect();
        self.marks = namespaces.into_iter().map(|namespace| ((namespace, Mark::Clear), number)).collect();
    }

    /// Drops what `delivered` held, unless it was asked for again since.
    pub(super) fn forget(&mut self, delivered: &Undelivered) {
        self.keys.retain(|key, number| delivered.keys.get(key) != Some(number));
        self.marks.retain(|mark, number| delivered.marks.get(mark) != Some(number));
        self.patterns.retain(|(.., number)| delivered.patterns.iter().all(|(.., done)| done != number));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len() + self.marks.len() + self.patterns.len()
    }
}
