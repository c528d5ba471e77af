//! The webhooks as a whole: reviews in, answers out; over real TLS where there is a wire.

mod any_bytes;
mod decisions;
mod forwarding;
mod linked;
mod numbers;
mod reviews;
mod serving;
mod upstream;
mod wire;
