//! What becomes of a review.

use api::gate::GateRequest;

use crate::answer::Answer;

#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// No business of ours, and why.
    Allow(&'static str),
    /// A Pod that gets no agent and nobody misses one of, and why.
    Spare(String),
    /// A Pod that gets one.
    Injected(Answer),
    /// A Pod that asks for one and cannot have it.
    Skipped(Answer),
    Answer(Answer),
    Ask(Box<GateRequest>),
    /// It should be asked, and cannot be.
    Unaskable(String),
}
