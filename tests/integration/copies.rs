//! Dumps of real servers under load, into real repositories and back.

mod by_kubectl;
mod cli;
mod ends;
mod killed;
mod loss;
mod round_trip;
mod tools;
mod world;
