//! Replays labelled questions through a policy, to see what it would have served and how often wrongly. The
//! index that a cache has, a judge that knows the truth or errs as often as it is told to, and the same seed gives the same report.

mod curve;
mod pairs;
mod search;
mod stream;

pub use curve::{Curve, CurvePoint};
pub use pairs::{LookupReport, Pair, PairReport, replay_lookups, replay_pairs};
pub use stream::{Labelled, StreamOptions, StreamReport, replay_stream};

use crate::semantic::decide::{Candidate, ClusterId, EntryId};
use crate::semantic::normalise::normalise;
use crate::semantic::veto::Profile;

/// A text with all that a lookup by meaning needs.
#[derive(Clone, Debug)]
pub struct Embedded {
    key: String,
    vector: Vec<f32>,
    profile: Profile,
}

impl Embedded {
    /// The text, and its embedding, which is brought to unit length. A vector of another length than the others', or
    /// with a part that is no number, is near to nothing.
    pub fn new(text: &str, vector: &[f32]) -> Embedded {
        let length = search::dot(vector, vector).sqrt();
        let scale = if length.is_finite() && length > 0.0 { 1.0 / length } else { 0.0 };
        let vector = vector.iter().map(|part| if scale == 0.0 { 0.0 } else { part * scale }).collect();
        Embedded { key: normalise(text), vector, profile: Profile::of(text) }
    }

    fn candidate(&self, of: &Embedded, place: usize, cluster: ClusterId, similarity: f32) -> Candidate {
        Candidate {
            entry: EntryId(place as u64),
            cluster,
            similarity,
            comparison: of.profile.compare(&self.profile),
        }
    }
}
