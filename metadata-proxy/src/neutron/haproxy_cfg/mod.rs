//! Reads the haproxy configuration that Neutron's agents write for a tenant.
//!
//! It knows the forms of every release since Pike, from the L3, DHCP and OVN agents, and nothing
//! else of haproxy's language: what it does not understand it refuses, for a directive left out
//! could be the one that mattered. Directives that change nothing for guests are the exception;
//! they are listed in [`ProxyConfig::ignored`]. It opens no file and never panics.

mod error;
mod limits;
mod parser;
mod words;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub use self::{
    error::{ParseError, Problem},
    parser::Parser,
};
use super::TenantSettings;
use crate::identity::Tenant;

/// What a configuration says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Whose guests are to be served.
    pub tenant: Tenant,
    /// How they are to be served.
    pub settings: TenantSettings,
    /// Whether the program is to leave the foreground.
    pub daemon: bool,
    /// File for the pid of the process that stays.
    pub pidfile: Option<PathBuf>,
    /// User that the process is to become.
    pub user: Option<String>,
    /// Group that the process is to become.
    pub group: Option<String>,
    /// Where log lines go: a socket's path, or an address.
    pub log_address: Option<String>,
    /// The program's name in log lines.
    pub log_tag: Option<String>,
    /// Directives that were understood to change nothing for guests.
    pub ignored: Vec<Ignored>,
}

/// A directive that changes nothing for guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ignored {
    /// Its line, counted from 1.
    pub line: usize,
    /// The directive, cut to a readable length.
    pub directive: String,
}

/// Reads one configuration.
///
/// # Errors
///
/// If the text is not one that Neutron writes.
pub fn parse(text: &str) -> Result<ProxyConfig, ParseError> {
    let mut parser = Parser::default();
    parser.read(text)?;
    parser.finish()
}
