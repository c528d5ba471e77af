//! The webhooks as a whole: reviews in, answers out; over real TLS where there is a wire.

#![expect(clippy::unwrap_used, reason = "helpers of tests; clippy excuses only the tests themselves")]

mod any_bytes;
mod crowds;
mod decisions;
mod forwarding;
mod injection;
mod linked;
mod numbers;
mod reviews;
mod serving;
mod upstream;
mod wire;
