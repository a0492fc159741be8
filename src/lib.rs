//! tfcheck runs one checkpoint and one frozen input through many variants of a transformer and says
//! who computes what, how fast, and who is wrong.

pub mod checkpoint;
pub mod inputs;
pub mod results;
pub mod variant;
