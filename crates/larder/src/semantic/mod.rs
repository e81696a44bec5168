//! Finding an answer by meaning: embedders turn texts into vectors, an index finds the nearest ones, and a policy
//! decides whether what was found may be served.
//!
//! Vectors of two models, or of two versions of one, mean nothing to each other: a [`Model`] goes with an index and
//! its snapshots, and what is of another one is refused.

pub mod decide;
pub mod embed;
pub mod evaluate;
pub mod index;
pub mod normalise;
pub mod veto;

use std::fmt;

/// What vectors are made by, and so which can be compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Model {
    /// The model's name, as its owner calls it.
    pub name: String,
    /// Changes with everything that the vectors depend on.
    pub version: String,
    /// The length of a vector.
    pub dimensions: usize,
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({} dimensions)", self.name, self.version, self.dimensions)
    }
}
