//! `--metrics PATH`: what a machine counts, on a Unix socket, for as long as it runs.
//!
//! | file | what |
//! |---|---|
//! | `socket.rs` | the socket's file: bound, never stolen, removed at the end |
//! | `server.rs` | one thread, a few clients at a time, each for a limited time |
//! | `client.rs` | what a client asked for, and the answer |
//! | `text.rs` | the counters, for Prometheus and as JSON |

mod client;
mod server;
mod socket;
mod text;

pub(crate) use server::Server;
pub(crate) use socket::Socket;
pub(crate) use text::to_json;
