//! The messages that istiod and the node proxy exchange, generated from the .proto files of this folder.
//!
//! Leaves to others: what they mean (`control` turns them into `mesh` types at the border).
#![forbid(unsafe_code)]
