//! One binary, so that all of it links once.

mod attention;
mod filetests;
mod ops;
mod random;
mod text;
mod texts;
mod verify;
