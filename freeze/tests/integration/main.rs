//! The freezer and its engines, against the in-memory server and against real ones.

mod contract;
mod freezer;
mod memory;
mod real;
