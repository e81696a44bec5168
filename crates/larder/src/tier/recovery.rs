//! How a tier comes back that was set aside: what it has not heard of first, then a sign of life.

use super::{Removal, Tier, Undelivered};
use crate::error::Result;
use crate::key::EntryKey;

/// How many keys one step of a replay removes.
const REPLAY_BATCH: usize = 500;

impl Tier {
    /// Tries to bring a tier back that is set aside: delivers what was kept, then asks for a sign of life.
    pub(crate) async fn recover(&self) {
        loop {
            let Some(kept) = self.state.lock().to_deliver() else { return };
            let answer = match kept.is_empty() {
                true => self.ping().await,
                false => self.replay(&kept).await,
            };
            let mut state = self.state.lock();
            if let Err(error) = answer {
                state.last_error = Some(error);
                return;
            }
            state.undelivered.forget(&kept);
            if state.undelivered.is_empty() {
                tracing::info!(tier = self.name(), "the tier is back");
                state.aside_since_ms = None;
                state.undelivered_since_ms = None;
                state.failures_in_row = 0;
                self.guard.try_again();
                break;
            }
        }
        // What it still holds was delivered, and does no harm when it is delivered again.
        if self.journal.as_ref().is_some_and(|journal| !journal.is_empty()) {
            self.write_journal(|journal, state| journal.rewrite(|| state.lock().undelivered.notes())).await;
        }
    }

    /// Past the guard: what comes first after an outage must not wait for a breaker.
    async fn replay(&self, kept: &Undelivered) -> Result<()> {
        let deliver = async |removal: Removal<'_>, timeout| {
            self.within(timeout, "remove", self.carry_out(&removal)).await.map(drop)
        };
        // In the order in which they came, which is the same in each run of a test.
        let mut marks: Vec<_> = kept.marks.iter().collect();
        marks.sort_unstable_by_key(|(_, number)| **number);
        for ((namespace, mark), _) in marks {
            deliver(Removal::Mark(namespace, mark), self.options.write_timeout).await?;
        }
        for (namespace, pattern, _) in &kept.patterns {
            deliver(Removal::Matching(namespace, pattern), self.scan_timeout()).await?;
        }
        let mut keys: Vec<EntryKey> = kept.keys.keys().cloned().collect();
        keys.sort_unstable_by_key(EntryKey::hash64);
        for batch in keys.chunks(REPLAY_BATCH) {
            deliver(Removal::Keys(batch), self.options.write_timeout).await?;
        }
        Ok(())
    }
}
