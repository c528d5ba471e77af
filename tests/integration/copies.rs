//! Dumps of real servers under load, into real repositories and back.

mod round_trip;
mod world;
