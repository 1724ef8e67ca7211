//! What each command means: options become a recipe's input, its outcome
//! becomes reports and an exit status.

pub mod check;
pub mod delivery;
pub mod generate;
pub mod run;
pub mod snapshot;
