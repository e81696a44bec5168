//! What is known of each cluster: how often its answer was right and wrong when judged. Bounded; the least recently
//! judged are forgotten.

use super::ClusterId;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Most clusters that are remembered: 4 MiB. A forgotten one counts as new.
const CLUSTERS_MAX: usize = 100_000;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Vec<(u64, Record)>", into = "Vec<(u64, Record)>")]
pub(super) struct Records {
    clusters: HashMap<ClusterId, Record>,
    turn: u64,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Record {
    right: f32,
    wrong: f32,
    turn: u64,
}

/// What of a record remains at each new verdict, so that the last fifty or so count: an answer that has gone stale is
/// found out, and one that has been put right recovers.
const KEPT: f32 = 0.98;

impl Records {
    /// Log odds of being right, with one of each before anything is known.
    pub(super) fn log_odds(&self, cluster: ClusterId) -> f32 {
        self.clusters.get(&cluster).map_or(0.0, |record| ((record.right + 1.0) / (record.wrong + 1.0)).ln())
    }

    pub(super) fn note(&mut self, cluster: ClusterId, is_right: bool) {
        self.turn += 1;
        if self.clusters.len() >= CLUSTERS_MAX && !self.clusters.contains_key(&cluster) {
            self.forget_oldest();
        }
        let record = self.clusters.entry(cluster).or_default();
        record.right = record.right * KEPT + f32::from(u8::from(is_right));
        record.wrong = record.wrong * KEPT + f32::from(u8::from(!is_right));
        record.turn = self.turn;
    }

    pub(super) fn forget(&mut self, cluster: ClusterId) {
        self.clusters.remove(&cluster);
    }

    pub(super) fn is_sound(&self) -> bool {
        let sound = |count: f32| (0.0..=1.0 / (1.0 - KEPT) + 1.0).contains(&count);
        self.clusters.len() <= CLUSTERS_MAX
            && self.clusters.values().all(|record| sound(record.right) && sound(record.wrong))
    }

    /// An eighth at once, so that the scan is rare.
    fn forget_oldest(&mut self) {
        let mut turns: Vec<u64> = self.clusters.values().map(|record| record.turn).collect();
        let (_, cut, _) = turns.select_nth_unstable(CLUSTERS_MAX / 8);
        let cut = *cut;
        self.clusters.retain(|_, record| record.turn > cut);
    }
}

impl From<Vec<(u64, Record)>> for Records {
    fn from(rows: Vec<(u64, Record)>) -> Self {
        let turn = rows.iter().map(|(_, record)| record.turn).max().unwrap_or(0);
        Records { clusters: rows.into_iter().map(|(id, record)| (ClusterId(id), record)).collect(), turn }
    }
}

impl From<Records> for Vec<(u64, Record)> {
    fn from(records: Records) -> Self {
        let mut rows: Vec<_> = records.clusters.into_iter().map(|(id, record)| (id.0, record)).collect();
        rows.sort_unstable_by_key(|(id, _)| *id);
        rows
    }
}
