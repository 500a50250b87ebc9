//! A plain HTTP server inside a namespace: answers every request with the same words.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use socket2::Socket;

use crate::{netns::Netns, wait::wait_for};

const IDLE: Duration = Duration::from_secs(30);
const BOUND_WITHIN: Duration = Duration::from_secs(10);

/// A running server; gone when dropped.
#[derive(Debug)]
pub struct Web {
    listener: OwnedFd,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    words: String,
    stopped: AtomicBool,
    requests: Mutex<Vec<String>>,
}

impl Web {
    /// Listens inside a namespace. The answer to everything is `words`.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub fn start(netns: &Netns, address: SocketAddr, words: &str) -> Result<Self> {
        // A program that another test is just starting may for a moment hold a listener closed here.
        let what = format!("listener on {address} in {}", netns.name());
        let listener = wait_for(&what, BOUND_WITHIN, || {
            netns.run(|| Ok(TcpListener::bind(address).ok()))
        })?;
        let shared = Arc::new(Shared {
            words: words.to_owned(),
            stopped: AtomicBool::new(false),
            requests: Mutex::default(),
        });
        let handle = listener
            .as_fd()
            .try_clone_to_owned()
            .context("cannot share a listener")?;
        let acceptor = thread::Builder::new()
            .name("web".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || accept(&listener, &shared)
            })
            .context("cannot start a thread")?;
        Ok(Self {
            listener: handle,
            shared,
            acceptor: Some(acceptor),
        })
    }

    /// The heads of the requests until now.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        self.shared
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        let socket = self.listener.try_clone().map(Socket::from);
        // Ends the accept(2) that waits, and all later ones.
        let shut = socket.and_then(|socket| socket.shutdown(Shutdown::Both));
        if let (Ok(()), Some(acceptor)) = (shut, self.acceptor.take()) {
            let _ = acceptor.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept() {
        if shared.stopped.load(Ordering::SeqCst) {
            return;
        }
        let shared = Arc::clone(shared);
        // Ends with its connection, or when nothing was said on it for a while.
        thread::spawn(move || serve(stream, &shared));
    }
}

fn serve(mut stream: TcpStream, shared: &Shared) {
    let _ = stream.set_read_timeout(Some(IDLE));
    let mut pending = Vec::new();
    loop {
        let Some(end) = pending
            .windows(4)
            .position(|window: &[u8]| window == b"\r\n\r\n")
        else {
            let mut buffer = [0; 4096];
            match stream.read(&mut buffer) {
                Ok(length) if length > 0 => pending.extend_from_slice(&buffer[..length]),
                _ => return,
            }
            continue;
        };
        let rest = pending.split_off(end + 4);
        let head = String::from_utf8_lossy(&pending).into_owned();
        pending = rest;
        shared
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(head);
        let words = &shared.words;
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{words}",
            words.len()
        );
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}
