//! A model of a tenant's life: every order of events, down to the single steps of bringing up and
//! taking down, with the real proof of identity, the real phases, and a kernel that remembers.
//!
//! What is checked after every step is what makes a crossed answer impossible; what is checked once
//! all is quiet is that a tenant that is declared is served. The steps stand in the order of
//! `place::open`, `registry::serving` and ARCHITECTURE.md.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use metadata_proxy_common::TenantKind;
use proptest::prelude::*;
use uuid::Uuid;

use super::{Backoff, Phase, Provider, life::Life};
use crate::{
    identity::{Identity, Tenant},
    kernel::{Device, Kernel as _, NetnsCookie, fake::FakeKernel},
    listener::Caller,
};

const NAMESPACES: usize = 3;
const BACKOFF: Backoff = Backoff {
    min: Duration::from_millis(1),
    max: Duration::from_millis(8),
};

/// What may happen; the first number chooses the namespace.
#[derive(Clone, Debug)]
enum Event {
    Declare(usize, Provider, u8),
    Withdraw(usize, Provider),
    /// The registry does the next single step.
    Step(usize),
    /// The next step fails, as when a port is taken.
    Fail(usize),
    Damage(usize, Damage),
    Audit(usize),
    /// The namespace is deleted, and another has its name.
    Replace(usize),
    /// The process is killed, and started again.
    Crash,
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    Entry,
    /// The entry names the tenant of the namespace beside it.
    WrongEntry,
    Filter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Bind(Tenant),
    Attach,
    Enter(Tenant),
    Leave,
    Detach,
    Close,
}

struct Namespace {
    cookie: NetnsCookie,
    declared: BTreeMap<Provider, Tenant>,
    life: Life,
    /// The tenant its listener was bound for, in which namespace.
    listener: Option<(Tenant, NetnsCookie)>,
    steps: VecDeque<Step>,
}

struct World {
    kernel: FakeKernel,
    namespaces: Vec<Namespace>,
    next_cookie: u64,
}

fn tenant(id: u8) -> Tenant {
    Tenant {
        kind: TenantKind::Router,
        id: Uuid::from_u128(id.into()),
    }
}

fn device() -> Device {
    Device {
        name: "qr-1".to_owned(),
        index: 2,
    }
}

impl Namespace {
    fn new(cookie: u64) -> Self {
        Self {
            cookie: NetnsCookie(cookie),
            declared: BTreeMap::new(),
            life: Life::new(BACKOFF),
            listener: None,
            steps: VecDeque::new(),
        }
    }

    /// Who it belongs to: the later provider wins.
    fn effective(&self) -> Option<Tenant> {
        self.declared.last_key_value().map(|(_, tenant)| *tenant)
    }

    /// What is left to do until it is as it was declared.
    fn plan(&mut self) {
        let bound = self.listener.map(|(tenant, _)| tenant);
        let wanted = self.effective();
        self.steps.clear();
        if bound.is_some() && bound != wanted {
            self.steps.extend([Step::Leave, Step::Detach, Step::Close]);
        }
        if let Some(tenant) = wanted
            && (bound != wanted || *self.life.phase() != Phase::Serving)
        {
            if bound != wanted {
                self.steps.push_back(Step::Bind(tenant));
            }
            self.steps.extend([Step::Attach, Step::Enter(tenant)]);
        }
    }
}

impl World {
    fn new() -> Self {
        Self {
            kernel: FakeKernel::default(),
            namespaces: (1..=NAMESPACES as u64).map(Namespace::new).collect(),
            next_cookie: 100,
        }
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Declare(at, provider, id) => {
                let namespace = &mut self.namespaces[at];
                namespace.declared.insert(provider, tenant(id));
                namespace.plan();
            }
            Event::Withdraw(at, provider) => {
                let namespace = &mut self.namespaces[at];
                namespace.declared.remove(&provider);
                namespace.plan();
            }
            Event::Step(at) => self.step(at),
            Event::Fail(at) => self.fail(at),
            Event::Damage(at, damage) => self.damage(at, damage),
            Event::Audit(at) => self.audit(at),
            Event::Replace(at) => self.replace(at),
            Event::Crash => self.crash(),
        }
    }

    fn step(&mut self, at: usize) {
        let namespace = &mut self.namespaces[at];
        let Some(step) = namespace.steps.pop_front() else {
            return;
        };
        let cookie = namespace.cookie;
        match step {
            Step::Bind(tenant) => namespace.listener = Some((tenant, cookie)),
            Step::Attach => drop(self.kernel.attach(cookie, &device()).unwrap()),
            Step::Enter(tenant) => {
                self.kernel.declare(cookie, tenant).unwrap();
                namespace.life.served();
            }
            Step::Leave => {
                self.kernel.withdraw(cookie).unwrap();
                namespace.life.renewed();
            }
            Step::Detach => self.kernel.forget(cookie),
            Step::Close => namespace.listener = None,
        }
    }

    /// What was opened is taken out again, in the reverse order.
    fn fail(&mut self, at: usize) {
        let namespace = &mut self.namespaces[at];
        if !namespace
            .steps
            .iter()
            .any(|step| matches!(step, Step::Enter(_)))
        {
            return;
        }
        self.kernel.withdraw(namespace.cookie).unwrap();
        self.kernel.forget(namespace.cookie);
        namespace.listener = None;
        namespace.life.failed("no".to_owned(), Instant::now());
        namespace.plan();
    }

    fn damage(&self, at: usize, damage: Damage) {
        let cookie = self.namespaces[at].cookie;
        match damage {
            Damage::Entry => self.kernel.withdraw(cookie).unwrap(),
            Damage::WrongEntry => {
                let beside = &self.namespaces[(at + 1) % NAMESPACES];
                if let Some(tenant) = beside.effective() {
                    self.kernel.declare(cookie, tenant).unwrap();
                }
            }
            Damage::Filter => self.kernel.forget(cookie),
        }
    }

    /// As `registry::audit`: what is gone is put back, but only where it is to be.
    fn audit(&mut self, at: usize) {
        let namespace = &self.namespaces[at];
        let Some((tenant, cookie)) = namespace.listener else {
            // An entry and a link of ours that serve nobody: once a start has seen all there is, it
            // removes them (`forget_earlier_run`).
            self.kernel.withdraw(namespace.cookie).unwrap();
            self.kernel.forget(namespace.cookie);
            return;
        };
        if !namespace.steps.is_empty() {
            return;
        }
        if self.kernel.tenant(cookie).unwrap() != Some(tenant) {
            self.kernel.declare(cookie, tenant).unwrap();
        }
        drop(self.kernel.attach(cookie, &device()).unwrap());
    }

    /// The kernel takes its devices; the registry lets go of what had its name.
    fn replace(&mut self, at: usize) {
        let gone = self.namespaces[at].cookie;
        self.kernel.withdraw(gone).unwrap();
        self.kernel.forget(gone);
        self.next_cookie += 1;
        let declared = std::mem::take(&mut self.namespaces[at].declared);
        let mut namespace = Namespace::new(self.next_cookie);
        namespace.declared = declared;
        namespace.plan();
        self.namespaces[at] = namespace;
    }

    /// Entries and links stay, listeners do not. What is found again is adopted.
    fn crash(&mut self) {
        for namespace in &mut self.namespaces {
            namespace.listener = None;
            namespace.life = Life::new(BACKOFF);
            namespace.plan();
        }
    }

    /// A guest of this namespace connects, from the same address as any other's.
    fn connect(&self, at: usize) -> Option<Identity> {
        let namespace = &self.namespaces[at];
        let listener = namespace.listener?;
        let caller = Caller {
            peer: "10.0.0.5:40000".parse().unwrap(),
            local: "169.254.169.254:80".parse().unwrap(),
            original: None,
            netns: namespace.cookie,
        };
        Identity::prove(&caller, listener, &self.kernel).ok()
    }

    fn check(&self) {
        for (at, namespace) in self.namespaces.iter().enumerate() {
            if let Some(identity) = self.connect(at) {
                let bound = namespace.listener.map(|(tenant, _)| tenant);
                assert_eq!(
                    Some(identity.tenant()),
                    bound,
                    "the listener's tenant, or nobody"
                );
                let entry = self.kernel.tenant(namespace.cookie).unwrap();
                assert_eq!(
                    Some(identity.tenant()),
                    entry,
                    "the entry's tenant, or nobody"
                );
            }
            if *namespace.life.phase() == Phase::Serving {
                assert!(
                    namespace.listener.is_some(),
                    "never served without a listener"
                );
            }
            // Whatever is still to be done, nothing is attached or entered before it is bound, and
            // nothing closed before it is left and detached.
            let position = |wanted: fn(&Step) -> bool| namespace.steps.iter().position(wanted);
            let bind = position(|step| matches!(step, Step::Bind(_)));
            let attach = position(|step| *step == Step::Attach);
            let enter = position(|step| matches!(step, Step::Enter(_)));
            if let (Some(bind), Some(attach)) = (bind, attach) {
                assert!(bind < attach, "bind before attach");
            }
            if let (Some(attach), Some(enter)) = (attach, enter) {
                assert!(attach < enter, "attach before the entry");
            }
            if attach.is_some() && bind.is_none() {
                assert!(namespace.listener.is_some(), "bound before attach");
            }
            if let Some(close) = position(|step| *step == Step::Close) {
                let leave = position(|step| *step == Step::Leave);
                assert!(
                    leave.is_none_or(|leave| leave < close),
                    "left before it is closed"
                );
            }
        }
    }

    /// Nothing more happens, and the audit comes to everybody.
    fn settle(&mut self) {
        for at in 0..NAMESPACES {
            while !self.namespaces[at].steps.is_empty() {
                self.step(at);
                self.check();
            }
            self.audit(at);
            self.check();
        }
    }
}

fn provider() -> impl Strategy<Value = Provider> {
    prop_oneof![
        Just(Provider::NetnsDir),
        Just(Provider::Admin),
        Just(Provider::Register)
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let at = 0..NAMESPACES;
    let damage = prop_oneof![
        Just(Damage::Entry),
        Just(Damage::WrongEntry),
        Just(Damage::Filter)
    ];
    prop_oneof![
        3 => (at.clone(), provider(), 1..5_u8).prop_map(|(at, by, id)| Event::Declare(at, by, id)),
        2 => (at.clone(), provider()).prop_map(|(at, by)| Event::Withdraw(at, by)),
        8 => at.clone().prop_map(Event::Step),
        1 => at.clone().prop_map(Event::Fail),
        2 => (at.clone(), damage).prop_map(|(at, damage)| Event::Damage(at, damage)),
        2 => at.clone().prop_map(Event::Audit),
        1 => at.prop_map(Event::Replace),
        1 => Just(Event::Crash),
    ]
}

proptest! {
    #[test]
    fn no_order_of_events_serves_anybody_as_another(
        events in proptest::collection::vec(event(), 0..120),
    ) {
        let mut world = World::new();
        for event in &events {
            world.happen(event);
            world.check();
        }
        world.settle();
        for (at, namespace) in world.namespaces.iter().enumerate() {
            let served = world.connect(at).map(|identity| identity.tenant());
            prop_assert_eq!(served, namespace.effective(), "served as declared, once all is quiet");
            let attached = world.kernel.attached.lock().unwrap();
            let is_attached = attached.contains(&(namespace.cookie, device().index));
            prop_assert_eq!(is_attached, namespace.effective().is_some());
            let entry = world.kernel.tenant(namespace.cookie).unwrap();
            prop_assert_eq!(entry, namespace.effective(), "an entry, if and only if it is served");
        }
        let entries = world.kernel.tenants.lock().unwrap().len();
        let declared = world.namespaces.iter().filter(|it| it.effective().is_some()).count();
        prop_assert_eq!(entries, declared, "no entry of a namespace that is gone");
    }
}
