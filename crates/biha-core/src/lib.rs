//! The rules of biha as a pure state machine.
#![forbid(unsafe_code)]

mod command;
mod config;
mod event;
mod hardstate;
mod history;
mod ids;
pub mod image;
mod message;
mod node;
mod step;
pub mod wire;

pub use command::*;
pub use config::*;
pub use event::*;
pub use hardstate::*;
pub use history::*;
pub use ids::*;
pub use message::*;
pub use node::*;
pub use step::*;
