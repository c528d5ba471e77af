//! The whole: the real server as a process, real databases, real kubectl, our plugin.

mod kubectl;
mod layering;
mod plugin;
mod secrets;
mod server;
