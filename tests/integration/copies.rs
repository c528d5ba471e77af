//! Dumps of real servers under load, into real repositories and back.

mod cli;
mod loss;
mod round_trip;
mod world;
