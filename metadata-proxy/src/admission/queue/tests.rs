use std::{
    net::IpAddr,
    num::NonZeroU32,
    sync::atomic::{AtomicU32, Ordering},
    task::Wake,
};

use metadata_proxy_common::TenantKind;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

fn tenant(number: u32) -> Tenant {
    Tenant {
        kind: TenantKind::OvnNetwork,
        id: Uuid::from_u128(number.into()),
    }
}

fn guest(number: u32) -> GuestAddress {
    GuestAddress::from(IpAddr::from(number.to_be_bytes()))
}

fn fixed(bound: u32) -> BoundPolicy {
    BoundPolicy::Fixed(NonZeroU32::new(bound).unwrap())
}

const WIDE: QueueLimits = QueueLimits {
    waiting: 100_000,
    waiting_per_tenant: 100_000,
};

fn soon() -> time::Instant {
    time::Instant::now() + Duration::from_secs(20)
}

/// A waker that says whether it was woken.
#[derive(Default)]
struct Bell(AtomicU32);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A turn that a test polls by hand.
struct Guest<'a> {
    turn: Turn<'a>,
    bell: Arc<Bell>,
}

impl<'a> Guest<'a> {
    fn new(queue: &'a Arc<Queue>, tenant_number: u32, guest_number: u32) -> Self {
        let (tenant, guest) = (tenant(tenant_number), guest(guest_number));
        Self {
            turn: Turn {
                queue,
                tenant,
                guest,
                waiter: None,
                timed_out: false,
            },
            bell: Arc::default(),
        }
    }

    fn poll(&mut self) -> Poll<Result<Permit, QueueError>> {
        let waker = Waker::from(Arc::clone(&self.bell));
        Pin::new(&mut self.turn).poll(&mut Context::from_waker(&waker))
    }

    fn was_woken(&self) -> bool {
        self.bell.0.load(Ordering::Relaxed) > 0
    }
}

fn granted(poll: Poll<Result<Permit, QueueError>>) -> Permit {
    match poll {
        Poll::Ready(Ok(permit)) => permit,
        Poll::Ready(Err(error)) => panic!("{error}"),
        Poll::Pending => panic!("still waits"),
    }
}

#[test]
fn a_permit_given_back_wakes_exactly_the_next_in_turn() {
    let queue = Queue::new(fixed(1), WIDE);
    let held = queue.try_acquire().unwrap();
    assert!(queue.try_acquire().is_none());
    let mut greedy: Vec<_> = (0..3).map(|_| Guest::new(&queue, 1, 1)).collect();
    let mut modest = Guest::new(&queue, 2, 1);
    for waiting in greedy.iter_mut().chain([&mut modest]) {
        assert!(waiting.poll().is_pending());
    }
    drop(held);
    assert!(greedy[0].was_woken());
    assert!(!greedy[1].was_woken() && !modest.was_woken());
    drop(granted(greedy[0].poll()));
    assert!(modest.was_woken());
    assert!(!greedy[1].was_woken());
}

#[test]
fn a_guest_that_hangs_up_leaves_at_once_and_passes_its_turn_on() {
    let queue = Queue::new(fixed(1), WIDE);
    let held = queue.try_acquire().unwrap();
    let mut first = Guest::new(&queue, 1, 1);
    let mut second = Guest::new(&queue, 1, 2);
    let mut third = Guest::new(&queue, 1, 3);
    for waiting in [&mut first, &mut second, &mut third] {
        assert!(waiting.poll().is_pending());
    }
    drop(first);
    assert_eq!(queue.snapshot().waiting, 2);
    drop(held);
    assert!(second.was_woken());
    drop(second);
    assert!(
        third.was_woken(),
        "a turn granted and not taken goes to the next"
    );
    drop(granted(third.poll()));
    let snapshot = queue.snapshot();
    assert_eq!(
        (snapshot.in_flight, snapshot.waiting, snapshot.abandoned),
        (0, 0, 2)
    );
}

#[test]
fn each_tenant_may_have_only_so_many_waiting() {
    let queue = Queue::new(
        fixed(1),
        QueueLimits {
            waiting: 10,
            waiting_per_tenant: 2,
        },
    );
    let _held = queue.try_acquire().unwrap();
    let mut waiting: Vec<_> = (0..3).map(|number| Guest::new(&queue, 1, number)).collect();
    assert!(waiting[0].poll().is_pending());
    assert!(waiting[1].poll().is_pending());
    assert!(matches!(
        waiting[2].poll(),
        Poll::Ready(Err(QueueError::TenantFull))
    ));
    assert!(Guest::new(&queue, 2, 1).poll().is_pending());
}

#[test]
fn a_full_queue_makes_room_for_a_modest_tenant() {
    let queue = Queue::new(
        fixed(1),
        QueueLimits {
            waiting: 4,
            waiting_per_tenant: 4,
        },
    );
    let _held = queue.try_acquire().unwrap();
    let mut greedy: Vec<_> = (0..4).map(|_| Guest::new(&queue, 1, 1)).collect();
    for waiting in &mut greedy {
        assert!(waiting.poll().is_pending());
    }
    let mut modest = Guest::new(&queue, 2, 1);
    assert!(modest.poll().is_pending());
    assert!(greedy[3].was_woken());
    assert!(matches!(
        greedy[3].poll(),
        Poll::Ready(Err(QueueError::Full))
    ));
    assert_eq!(queue.snapshot().waiting, 4);
    let mut equal: Vec<_> = (0..3)
        .map(|number| Guest::new(&queue, 3 + number, 1))
        .collect();
    assert!(equal[0].poll().is_pending());
    assert!(equal[1].poll().is_pending());
    assert!(
        matches!(equal[2].poll(), Poll::Ready(Err(QueueError::Full))),
        "nobody has more"
    );
}

#[test]
fn a_higher_bound_lets_those_who_wait_go_on() {
    let queue = Queue::new(fixed(1), WIDE);
    let _held = queue.try_acquire().unwrap();
    let mut waiting: Vec<_> = (0..3).map(|number| Guest::new(&queue, 1, number)).collect();
    for one in &mut waiting {
        assert!(one.poll().is_pending());
    }
    queue.reconfigure(fixed(3), WIDE);
    let woken: Vec<bool> = waiting.iter().map(Guest::was_woken).collect();
    assert_eq!(woken, [true, true, false]);
}

#[tokio::test]
async fn who_was_refused_is_next_when_a_connection_ends() {
    let policy = BoundPolicy::Adaptive {
        ceiling: NonZeroU32::new(64).unwrap(),
    };
    let queue = Queue::new(policy, WIDE);
    let mut open: Vec<Permit> = (0..5).map(|_| queue.try_acquire().unwrap()).collect();
    open.iter_mut().for_each(Permit::opened);
    let mut refused = queue.try_acquire().unwrap();
    let retried = tokio::spawn(async move {
        refused.refused(soon()).await;
        refused.opened();
        refused
    });
    while queue.snapshot().in_flight > 5 {
        tokio::task::yield_now().await;
    }
    assert!(queue.try_acquire().is_none(), "nobody overtakes it");
    let mut other = Guest::new(&queue, 1, 1);
    assert!(other.poll().is_pending());
    drop(open.pop());
    assert!(!other.was_woken());
    open.push(retried.await.unwrap());
    let snapshot = queue.snapshot();
    assert_eq!(
        (snapshot.bound, snapshot.connected, snapshot.backlog_full),
        (5, 5, 1)
    );
    assert_eq!(snapshot.waiting, 1, "the agent takes five and has five");
    drop(open.pop());
    drop(granted(other.poll()));
}

#[tokio::test]
async fn who_was_refused_tries_again_in_time_without_being_called() {
    let queue = Queue::new(fixed(1), WIDE);
    let mut refused = queue.try_acquire().unwrap();
    refused
        .refused(time::Instant::now() + Duration::from_millis(5))
        .await;
    assert_eq!(queue.snapshot().in_flight, 1);
    refused.opened();
    drop(refused);
    assert_eq!(queue.snapshot().in_flight, 0);
    drop(queue.try_acquire().unwrap());
}

#[test]
fn who_was_refused_and_hangs_up_lets_the_others_go_on() {
    let queue = Queue::new(fixed(2), WIDE);
    let mut refused = queue.try_acquire().unwrap();
    let mut other = Guest::new(&queue, 1, 1);
    {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let _ = runtime
            .block_on(async { time::timeout(Duration::ZERO, refused.refused(soon())).await });
    }
    assert!(other.poll().is_pending());
    drop(refused);
    assert!(other.was_woken());
    drop(granted(other.poll()));
    assert_eq!(queue.snapshot().in_flight, 0);
}

#[tokio::test]
async fn a_turn_that_does_not_come_in_time_is_given_up() {
    let queue = Queue::new(fixed(1), WIDE);
    let _held = queue.try_acquire().unwrap();
    let deadline = time::Instant::now() + Duration::from_millis(20);
    let outcome = queue.acquire(tenant(1), guest(1), deadline).await;
    assert_eq!(outcome.err(), Some(QueueError::TimedOut));
    let snapshot = queue.snapshot();
    assert_eq!(
        (snapshot.waiting, snapshot.timed_out, snapshot.abandoned),
        (0, 1, 0)
    );
}

#[test]
fn across_threads_no_wakeup_is_lost_and_the_bound_holds() {
    const BOUND: u32 = 3;
    let queue = Queue::new(fixed(BOUND), WIDE);
    let in_flight = Arc::new(AtomicU32::new(0));
    let served = Arc::new(AtomicU32::new(0));
    let workers: Vec<_> = (0..4_u32)
        .map(|worker| {
            let (queue, in_flight, served) = (
                Arc::clone(&queue),
                Arc::clone(&in_flight),
                Arc::clone(&served),
            );
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let tasks: Vec<_> = (0..50)
                        .map(|number| {
                            let (queue, in_flight, served) = (
                                Arc::clone(&queue),
                                Arc::clone(&in_flight),
                                Arc::clone(&served),
                            );
                            tokio::spawn(async move {
                                for round in 0..20 {
                                    let taken =
                                        queue.acquire(tenant(number % 7), guest(worker), soon());
                                    if (round + number) % 5 == 0 {
                                        // Hangs up after one look.
                                        let _ = time::timeout(Duration::ZERO, taken).await;
                                        continue;
                                    }
                                    let permit = taken.await.unwrap();
                                    let now = in_flight.fetch_add(1, Ordering::SeqCst) + 1;
                                    assert!(now <= BOUND, "{now} in flight");
                                    tokio::task::yield_now().await;
                                    in_flight.fetch_sub(1, Ordering::SeqCst);
                                    drop(permit);
                                    served.fetch_add(1, Ordering::SeqCst);
                                }
                            })
                        })
                        .collect();
                    for task in tasks {
                        task.await.unwrap();
                    }
                });
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    assert_eq!(served.load(Ordering::SeqCst), 4 * 50 * 16);
    let snapshot = queue.snapshot();
    assert_eq!((snapshot.in_flight, snapshot.waiting), (0, 0));
}

#[tokio::test]
async fn ten_modest_tenants_are_served_beside_a_greedy_one() {
    let queue = Queue::new(fixed(1), WIDE);
    let held = queue.try_acquire().unwrap();
    let served = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = tokio::task::JoinSet::new();
    for (tenant_number, requests) in [(0, 1_000)].into_iter().chain((1..=10).map(|one| (one, 3))) {
        for number in 0..requests {
            let (queue, served) = (Arc::clone(&queue), Arc::clone(&served));
            tasks.spawn(async move {
                let permit = queue
                    .acquire(tenant(tenant_number), guest(number % 5), soon())
                    .await
                    .unwrap();
                served.lock().unwrap().push(tenant_number);
                drop(permit);
            });
        }
    }
    while queue.snapshot().waiting < 1_030 {
        tokio::task::yield_now().await;
    }
    drop(held);
    while tasks.join_next().await.transpose().unwrap().is_some() {}
    let served = served.lock().unwrap();
    let last_modest = served.iter().rposition(|one| *one != 0).unwrap();
    assert!(
        last_modest < 33,
        "the last modest request was served as number {last_modest}"
    );
}

proptest! {
    #[test]
    fn free_places_and_waiting_guests_never_coexist(
        bound in 1_u32..5,
        steps in proptest::collection::vec((0_u8..5, 0_u32..4, 0_u32..3), 0..120),
    ) {
        let queue = Queue::new(fixed(bound), QueueLimits { waiting: 12, waiting_per_tenant: 6 });
        let mut waiting: Vec<Guest> = Vec::new();
        let mut permits: Vec<Permit> = Vec::new();
        for (step, who, at) in steps {
            let choice = usize::try_from(who * 3 + at).unwrap();
            match step {
                0 | 1 => {
                    let mut one = Guest::new(&queue, who, at);
                    match one.poll() {
                        Poll::Ready(Ok(permit)) => permits.push(permit),
                        Poll::Ready(Err(_)) => {}
                        Poll::Pending => waiting.push(one),
                    }
                }
                2 if !permits.is_empty() => {
                    let mut permit = permits.swap_remove(choice % permits.len());
                    permit.opened();
                    drop(permit);
                }
                3 if !waiting.is_empty() => drop(waiting.swap_remove(choice % waiting.len())),
                _ => {
                    // Only who was woken looks again: a lost wakeup shows as a free place below.
                    let mut still = Vec::new();
                    for mut one in waiting {
                        if !one.was_woken() {
                            still.push(one);
                            continue;
                        }
                        match one.poll() {
                            Poll::Ready(Ok(permit)) => permits.push(permit),
                            Poll::Ready(Err(_)) => {}
                            Poll::Pending => still.push(one),
                        }
                    }
                    waiting = still;
                }
            }
            let snapshot = queue.snapshot();
            let woken = waiting.iter().filter(|one| one.was_woken()).count();
            prop_assert!(snapshot.in_flight <= bound);
            prop_assert!(snapshot.in_flight == bound || snapshot.waiting == 0);
            prop_assert!(permits.len() <= snapshot.in_flight as usize);
            prop_assert!(snapshot.in_flight as usize <= permits.len() + woken);
            prop_assert_eq!(snapshot.waiting + woken, waiting.len());
        }
        drop((waiting, permits));
        let snapshot = queue.snapshot();
        prop_assert_eq!((snapshot.in_flight, snapshot.connected, snapshot.waiting), (0, 0, 0));
    }
}
