use super::*;

fn adaptive(ceiling: u32) -> Bound {
    Bound::new(BoundPolicy::Adaptive {
        ceiling: NonZeroU32::new(ceiling).unwrap(),
    })
}

/// An agent, and guests that always have more waiting; a step is a millisecond.
struct Model {
    bound: Bound,
    now: Instant,
    /// How many it serves at once.
    serves: u32,
    /// How many more connections it takes in a step.
    accepts: u32,
    /// How long each takes, steps.
    service: u32,
    /// Connections: steps left, once they are being served.
    connections: Vec<Option<u32>>,
    bounced: u32,
    /// How many requests were refused, however often each.
    refused: u32,
    served: u32,
}

impl Model {
    fn new(ceiling: u32, serves: u32, service: u32) -> Self {
        Self {
            bound: adaptive(ceiling),
            now: Instant::now(),
            serves,
            accepts: u32::MAX,
            service,
            connections: Vec::new(),
            bounced: 0,
            refused: 0,
            served: 0,
        }
    }

    fn accept(&mut self) {
        let serving = self.connections.iter().flatten().count();
        let room = self.serves.saturating_sub(u32::try_from(serving).unwrap());
        let room = usize::try_from(room.min(self.accepts)).unwrap();
        let service = self.service;
        let waiting = self.connections.iter_mut().filter(|one| one.is_none());
        waiting.take(room).for_each(|one| *one = Some(service));
    }

    fn connect(&mut self, bounced: bool) -> bool {
        let now = self.now;
        if self.connections.iter().filter(|one| one.is_none()).count() > 5 {
            self.bound.refused(!bounced, now);
            self.bounced += u32::from(!bounced);
            self.refused += u32::from(!bounced);
            return false;
        }
        self.bounced -= u32::from(bounced);
        self.connections.push(None);
        self.bound.opened(bounced, true, || now);
        true
    }

    fn step(&mut self) {
        self.now += Duration::from_millis(1);
        for left in self.connections.iter_mut().flatten() {
            *left -= 1;
        }
        let before = self.connections.len();
        self.connections.retain(|one| *one != Some(0));
        for _ in self.connections.len()..before {
            self.served += 1;
            self.bound.closed();
        }
        self.accept();
        while self.bounced > 0 && self.connect(true) {}
        while self.bounced == 0 && self.bound.connected() < self.bound.allowed() {
            self.connect(false);
        }
        self.bound.probe(self.now);
    }

    fn run(&mut self, steps: u32) {
        for _ in 0..steps {
            self.step();
        }
    }
}

#[test]
fn a_burst_finds_what_a_serial_agent_takes() {
    let mut model = Model::new(256, 1, 5);
    model.run(30);
    assert!(
        (6..=7).contains(&model.bound.limit()),
        "{}",
        model.bound.limit()
    );
    assert_eq!(model.served, 5);
}

#[test]
fn a_settled_bound_is_hardly_ever_exceeded() {
    for (serves, service) in [(1, 1), (1, 5), (8, 5), (8, 100)] {
        let mut model = Model::new(256, serves, service);
        model.run(60_000);
        let takes = serves + 6;
        let limit = model.bound.limit();
        assert!(
            limit <= takes + 1 && limit >= takes - takes / 4,
            "{limit} of {takes}"
        );
        let possible = 60_000 * serves / service;
        assert!(
            model.served >= possible * 98 / 100,
            "{} of {possible}",
            model.served
        );
        assert!(model.refused < 500, "{} refused in a minute", model.refused);
    }
}

#[test]
fn an_agent_that_accepts_slowly_but_takes_many_gets_many() {
    for service in [20, 50, 300, 2_000] {
        let mut model = Model::new(64, 1_000, service);
        model.accepts = 5;
        model.run(service.max(100) * 30);
        let limit = model.bound.limit();
        assert!(limit >= 40, "only {limit} at {service} ms");
    }
}

#[test]
fn an_agent_that_never_refuses_gets_the_ceiling_at_once() {
    let mut model = Model::new(64, u32::MAX, 1_000);
    model.connections.clear();
    let now = model.now;
    while model.bound.connected() < model.bound.allowed() {
        model.bound.opened(false, true, || now);
    }
    assert_eq!(model.bound.limit(), 64);
}

#[test]
fn it_grows_again_when_the_agent_takes_more() {
    let mut model = Model::new(256, 1, 5);
    model.run(10_000);
    model.serves = 8;
    model.run(20_000);
    assert!(model.bound.limit() >= 11, "{}", model.bound.limit());
}

#[test]
fn without_anybody_waiting_it_does_not_grow() {
    let mut bound = adaptive(256);
    for _ in 0..START {
        bound.opened(false, false, Instant::now);
    }
    assert_eq!(bound.limit(), START);
}

#[test]
fn it_never_falls_below_one() {
    let mut bound = adaptive(256);
    let now = Instant::now();
    bound.refused(true, now);
    assert_eq!(
        bound.allowed(),
        0,
        "who was refused tries again, nobody else"
    );
    bound.refused(false, now + OVERDUE);
    assert_eq!(bound.limit(), 1);
    bound.settle(|| now + OVERDUE);
    assert_eq!(bound.allowed(), 1);
}

#[test]
fn a_fixed_bound_stays() {
    let mut bound = Bound::new(BoundPolicy::Fixed(NonZeroU32::new(3).unwrap()));
    let now = Instant::now();
    bound.opened(false, true, || now);
    bound.refused(true, now);
    bound.refused(false, now + OVERDUE);
    bound.settle(|| now + OVERDUE);
    assert_eq!(bound.limit(), 3);
}
