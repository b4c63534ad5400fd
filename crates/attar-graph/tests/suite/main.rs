//! One binary, so that all of it links once.

mod attention;
mod filetests;
mod ops;
mod text;
mod texts;
mod verify;
