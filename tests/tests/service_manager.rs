//! The agent under a service manager that keeps its listeners, as systemd does: the manager is this
//! test, with a real notification socket.
#![expect(
    clippy::unwrap_used,
    reason = "what fails here fails the test, as it should"
)]

use std::{
    io::IoSliceMut,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::net::UnixDatagram,
    },
    path::PathBuf,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use metadata_proxy_tests::{
    Connection, Footprint, Kind, METADATA_V4, Node, TenantFixture,
    agent::Builder,
    crowd::{Outcome, ask_once},
    stage::{SOON, Stage, assert_served_twice, builder, traces_on_node},
    tenant_map, wait_until,
};
use nix::sys::{
    signal::Signal,
    socket::{ControlMessageOwned, MsgFlags, recvmsg},
};

/// What the manager was told, and what it keeps.
#[derive(Debug, Default)]
struct Told {
    words: Vec<String>,
    kept: Vec<(String, Arc<OwnedFd>)>,
    signs: Vec<Instant>,
}

/// A service manager.
struct Manager {
    told: Arc<Mutex<Told>>,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Manager {
    fn new(node: &Node) -> Self {
        let path = node.directory().join("notify.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        let told = Arc::<Mutex<Told>>::default();
        let into = Arc::clone(&told);
        let thread = thread::spawn(move || while hear(&socket, &into) {});
        Self {
            told,
            path,
            thread: Some(thread),
        }
    }

    /// Starts it as this manager would.
    fn starts(&self, agent: Builder) -> Builder {
        let kept = self.told.lock().unwrap().kept.clone();
        let agent = agent
            .env("NOTIFY_SOCKET", self.path.to_str().unwrap())
            .env("WATCHDOG_USEC", "300000");
        if kept.is_empty() {
            agent
        } else {
            agent.kept(kept)
        }
    }

    fn names(&self) -> Vec<String> {
        let told = self.told.lock().unwrap();
        let mut names: Vec<_> = told.kept.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    fn was_told(&self, word: &str) -> bool {
        self.told.lock().unwrap().words.iter().any(|it| it == word)
    }

    fn signs(&self) -> usize {
        self.told.lock().unwrap().signs.len()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let bye = UnixDatagram::unbound().unwrap();
        bye.send_to(b"BYE", &self.path).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Takes one notification; false if it was the last.
fn hear(socket: &UnixDatagram, told: &Mutex<Told>) -> bool {
    let mut buffer = [0; 4096];
    let mut part = [IoSliceMut::new(&mut buffer)];
    let mut space = nix::cmsg_space!([RawFd; 16]);
    let heard = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut part,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )
    .unwrap();
    let mut files = Vec::new();
    for message in heard.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(all) = message {
            // SAFETY: the kernel has just made them for us.
            files.extend(all.iter().map(|it| unsafe { OwnedFd::from_raw_fd(*it) }));
        }
    }
    let length = heard.bytes;
    let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
    if text == "BYE" {
        return false;
    }
    let mut told = told.lock().unwrap();
    let words: Vec<_> = text.lines().map(str::to_owned).collect();
    let name = words
        .iter()
        .find_map(|word| word.strip_prefix("FDNAME="))
        .unwrap_or("stored")
        .to_owned();
    for word in &words {
        match word.as_str() {
            "FDSTORE=1" => {
                let files = files.drain(..).map(|file| (name.clone(), Arc::new(file)));
                told.kept.extend(files);
            }
            "FDSTOREREMOVE=1" => told.kept.retain(|(its, _)| *its != name),
            "WATCHDOG=1" => told.signs.push(Instant::now()),
            _ => {}
        }
    }
    told.words.extend(words);
    true
}

fn managed() -> (Stage, Manager) {
    let node = Node::new().unwrap();
    let manager = Manager::new(&node);
    let stage = Stage::on(node, |agent| manager.starts(agent));
    (stage, manager)
}

fn start_again(stage: &mut Stage, manager: &Manager) {
    stage.agent = manager
        .starts(builder(&stage.node, &stage.upstream))
        .start()
        .unwrap();
}

fn name(tenant: &TenantFixture) -> String {
    let cookie = tenant_map::cookie(&tenant.netns).unwrap();
    format!("{}.{}.{cookie}", tenant.kind.word(), tenant.id)
}

#[test]
fn listeners_are_kept_with_names_and_taken_out_with_their_tenants() {
    let (mut stage, manager) = managed();
    let (stays, goes) = (stage.tenant(Kind::Router), stage.tenant(Kind::OvnNetwork));
    let mut expected = [name(&stays), name(&goes)];
    expected.sort();
    wait_until("both names", SOON, || manager.names() == expected).unwrap();
    assert!(manager.was_told("READY=1"));
    let (kind, id) = (goes.kind, goes.id);
    drop(goes);
    stage.agent.wait_gone(kind, id).unwrap();
    wait_until("one name", SOON, || manager.names() == [name(&stays)]).unwrap();
    assert!(stage.agent.stop().unwrap().success());
    assert!(manager.was_told("STOPPING=1"));
    wait_until("no name", SOON, || manager.names().is_empty()).unwrap();
    assert_eq!(traces_on_node(&stage.node), [""; 0]);
}

#[test]
fn guests_that_come_while_the_agent_restarts_wait_and_are_served() {
    let (mut stage, manager) = managed();
    let tenant = Arc::new(stage.tenant(Kind::Router));
    let by_hand = TenantFixture::builder(Kind::Network).name("by-hand");
    let by_hand = by_hand.build(&stage.node).unwrap();
    let id = by_hand.id.to_string();
    let add = [
        "tenants", "add", "--kind", "network", "--id", &id, "--netns", "by-hand",
    ];
    stage.agent.cli(&add).unwrap();
    stage.agent.wait_served(&by_hand).unwrap();
    let before = Footprint::of_netns(&tenant.netns).unwrap();
    // `RestartKillSignal`, then SIGKILL.
    for signal in [Signal::SIGUSR2, Signal::SIGKILL] {
        let mut kept = Connection::v4(tenant.guest()).unwrap();
        assert_eq!(kept.get("/").unwrap().status, 200);
        stage.agent.signal(signal).unwrap();
        stage.agent.wait(SOON).unwrap();
        // Nobody accepts, and nobody is refused.
        let guests: Vec<_> = (0..8)
            .map(|_| {
                let tenant = Arc::clone(&tenant);
                thread::spawn(move || {
                    tenant.guest().netns.enter().unwrap();
                    ask_once(None, &[&tenant.id.to_string()]).outcome
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(100));
        assert!(guests.iter().all(|guest| !guest.is_finished()));
        start_again(&mut stage, &manager);
        for guest in guests {
            assert_eq!(guest.join().unwrap(), Outcome::Served);
        }
        stage.agent.wait_served(&tenant).unwrap();
        assert_served_twice(&tenant);
        assert_eq!(
            Footprint::of_netns(&tenant.netns)
                .unwrap()
                .to_string()
                .lines()
                .count(),
            before.to_string().lines().count()
        );
        if signal == Signal::SIGUSR2 {
            // Only a process that ends in order can say who was added by hand.
            stage.agent.wait_served(&by_hand).unwrap();
            assert_served_twice(&by_hand);
        }
    }
    assert!(stage.agent.stop().unwrap().success());
    assert_eq!(traces_on_node(&stage.node), [""; 0]);
}

#[test]
fn a_listener_of_a_tenant_that_went_meanwhile_is_let_go() {
    let (mut stage, manager) = managed();
    let (stays, goes) = (stage.tenant(Kind::Router), stage.tenant(Kind::Router));
    let goes_by = name(&goes);
    wait_until("both names", SOON, || manager.names().len() == 2).unwrap();
    stage.agent.crash().unwrap();
    drop(goes);
    start_again(&mut stage, &manager);
    wait_until("one name", SOON, || !manager.names().contains(&goes_by)).unwrap();
    stage.agent.wait_served(&stays).unwrap();
    assert_served_twice(&stays);
    assert_eq!(stays.curl(METADATA_V4, &[]).unwrap().status, 200);
}

#[test]
fn signs_of_life_come_in_time_and_cease_with_a_worker_that_hangs() {
    let (mut stage, manager) = managed();
    let tenant = stage.tenant(Kind::Router);
    assert_served_twice(&tenant);
    let enough = manager.signs() + 10;
    wait_until("signs of life", SOON, || manager.signs() >= enough).unwrap();
    {
        let told = manager.told.lock().unwrap();
        let longest = told
            .signs
            .windows(2)
            .map(|two| two[1] - two[0])
            .max()
            .unwrap();
        assert!(longest < Duration::from_millis(300), "{longest:?}");
    }
    // A thread cannot be hung from outside; all of them can.
    stage.agent.signal(Signal::SIGSTOP).unwrap();
    thread::sleep(Duration::from_millis(50));
    let before = manager.signs();
    thread::sleep(Duration::from_millis(400));
    assert_eq!(manager.signs(), before);
    stage.agent.signal(Signal::SIGCONT).unwrap();
    wait_until("a sign of life", SOON, || manager.signs() > before).unwrap();
}

#[test]
fn the_service_manager_is_told_of_a_successor() {
    let (mut stage, manager) = managed();
    let tenant = stage.tenant(Kind::Router);
    // Started by somebody else: it has no word from the manager itself.
    let next = builder(&stage.node, &stage.upstream)
        .taking_over()
        .start()
        .unwrap();
    let mut before = std::mem::replace(&mut stage.agent, next);
    before.wait(SOON).unwrap();
    assert!(manager.was_told(&format!("MAINPID={}", stage.agent.pid())));
    let signs = manager.signs();
    wait_until("signs of the successor", SOON, || {
        manager.signs() > signs + 2
    })
    .unwrap();
    assert!(manager.names().contains(&name(&tenant)));
    assert_served_twice(&tenant);
}
