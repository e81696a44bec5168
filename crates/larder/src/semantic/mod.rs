//! Finding an answer by meaning: what makes two questions the same, and when one's answer may serve the other.

pub mod decide;
pub mod evaluate;
pub mod normalise;
pub mod veto;
