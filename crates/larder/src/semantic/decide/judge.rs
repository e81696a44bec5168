//! Whether two answers say the same. Equality of normal forms is free and never wrong where it says yes; a model, or
//! a person, can see more.

use async_trait::async_trait;

/// What a judge found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// One answer may stand for the other.
    Same,
    /// It may not.
    Different,
}

/// Compares answers. An endpoint that judges implements this; judges may err, and policies allow for it.
#[async_trait]
pub trait Judge: Send + Sync {
    /// Whether `served` may stand for `true_answer` to `question`; `None` where it can't be told, which teaches nothing.
    ///
    /// # Cancellation
    /// Dropping the future leaves nothing behind.
    async fn compare(&self, question: &str, true_answer: &str, served: &str) -> Option<Verdict>;
}

/// Judges by equality of [`normalised_answer`]. For short answers and classifications; longer ones of a model that
/// samples rarely repeat to the letter, so that nothing would ever be found equal.
#[derive(Clone, Copy, Debug, Default)]
pub struct AnswerEquality;

#[async_trait]
impl Judge for AnswerEquality {
    async fn compare(&self, _question: &str, true_answer: &str, served: &str) -> Option<Verdict> {
        let is_same = normalised_answer(true_answer) == normalised_answer(served);
        Some(if is_same { Verdict::Same } else { Verdict::Different })
    }
}

/// An answer without what does not matter to whether it is the same: case, white space, punctuation at the ends.
/// Numbers and signs inside stay.
pub fn normalised_answer(answer: &str) -> String {
    let words = answer.split_whitespace().map(str::to_lowercase).collect::<Vec<_>>().join(" ");
    words
        .trim_matches(|c: char| c.is_ascii_punctuation() && !matches!(c, '-' | '+' | '%' | '$' | '#'))
        .to_owned()
}
