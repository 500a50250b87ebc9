//! A guest that keeps its connection, as curl and Python's urllib3 do.
//!
//! Before it uses a connection again it looks whether the other end has closed it. Where that and
//! its next request cross on the way, it asks once more over a new connection (RFC 9112, 9.3.1):
//! that is what its user never hears of, and what is counted here.

use std::time::{Duration, Instant};

use crate::{
    crowd::{Asked, Outcome, judged},
    raw_http::{Answer, Connection, Read},
};

/// How long it waits for a connection, and for an answer.
const PATIENCE: Duration = Duration::from_secs(40);

const REQUEST: &[u8] = b"GET /openstack/latest/meta_data.json HTTP/1.1\r\n\
    Host: 169.254.169.254\r\nUser-Agent: guest\r\nAccept: */*\r\n\r\n";

/// A guest, with its connection if it has one.
#[derive(Debug, Default)]
pub struct KeepingGuest {
    kept: Option<Connection>,
    /// Connections it has opened.
    pub opened: usize,
    /// Kept connections that were closed before it used them again.
    pub stale: usize,
    /// Requests asked once more since the close of a kept connection crossed them.
    pub crossed: usize,
}

impl KeepingGuest {
    /// Asks, from inside the guest's namespace. An answer counts if its body has all of `wanted`.
    ///
    /// # Panics
    /// When the socket cannot be read for reasons of the test's own.
    pub fn ask(&mut self, wanted: &[&str]) -> Asked {
        let began = Instant::now();
        let outcome = self.outcome(wanted);
        Asked {
            outcome,
            took: began.elapsed(),
        }
    }

    fn outcome(&mut self, wanted: &[&str]) -> Outcome {
        let kept = self.kept.take();
        if kept.as_ref().is_some_and(Connection::is_stale) {
            self.stale += 1;
        } else if let Some(mut connection) = kept {
            match exchange(&mut connection) {
                Ok(Read::Closed | Read::Reset) => self.crossed += 1,
                read => return self.keep(connection, &read, wanted),
            }
        }
        let Ok(mut connection) = Connection::open(None, PATIENCE) else {
            return Outcome::Refused;
        };
        self.opened += 1;
        let read = exchange(&mut connection);
        self.keep(connection, &read, wanted)
    }

    fn keep(
        &mut self,
        connection: Connection,
        read: &anyhow::Result<Read>,
        wanted: &[&str],
    ) -> Outcome {
        if let Ok(Read::Answer(answer)) = read {
            self.kept = answer.keeps().then_some(connection);
        }
        judged(read, wanted)
    }
}

fn exchange(connection: &mut Connection) -> anyhow::Result<Read> {
    // Who is refused while writing is told so when reading.
    let _ = connection.send(REQUEST);
    let deadline = Instant::now() + PATIENCE;
    loop {
        match connection.answer("GET", deadline) {
            Ok(Read::Answer(Answer {
                status: 100..=199, ..
            })) => {}
            read => return read,
        }
    }
}
