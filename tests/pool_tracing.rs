//! What a pool tells a tracing subscriber: a span a task, events for what happens to workers. Needs the feature `tracing`.
#![cfg(feature = "tracing")]

mod pool_support;

use std::collections::HashMap;
use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use multiproc::{ProcessPool, TaskError, call, task};
use pool_support::{endless, pid, within};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

multiproc::test_support!();

/// Collects the fields of spans, whole once they are closed, and of events.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Collected>>);

#[derive(Default)]
struct Collected {
    last: u64,
    open: HashMap<u64, (String, u32)>,
    closed: Vec<String>,
    events: Vec<String>,
}

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = write!(self.0, "{}={value:?} ", field.name());
    }
}

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "multiproc::pool"
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut all = self.0.lock().unwrap();
        all.last += 1;
        let mut text = format!("{}: ", span.metadata().name());
        span.record(&mut Fields(&mut text));
        let id = all.last;
        all.open.insert(id, (text, 1));
        Id::from_u64(id)
    }

    fn record(&self, id: &Id, values: &Record<'_>) {
        let mut all = self.0.lock().unwrap();
        values.record(&mut Fields(&mut all.open.get_mut(&id.into_u64()).unwrap().0));
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = String::new();
        event.record(&mut Fields(&mut text));
        self.0.lock().unwrap().events.push(text);
    }

    fn clone_span(&self, id: &Id) -> Id {
        self.0.lock().unwrap().open.get_mut(&id.into_u64()).unwrap().1 += 1;
        id.clone()
    }

    fn try_close(&self, id: Id) -> bool {
        let mut all = self.0.lock().unwrap();
        let count = &mut all.open.get_mut(&id.into_u64()).unwrap().1;
        *count -= 1;
        if *count > 0 {
            return false;
        }
        let (text, _) = all.open.remove(&id.into_u64()).unwrap();
        all.closed.push(text);
        true
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Panics at all that it is told.
struct Touchy;

impl Subscriber for Touchy {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "multiproc::pool"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {
        panic!("a subscriber's own fault");
    }

    fn event(&self, _: &Event<'_>) {
        panic!("a subscriber's own fault");
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[tokio::test]
async fn a_subscriber_that_panics_costs_no_task_its_outcome() {
    let _guard = tracing::subscriber::set_default(Touchy);
    let pool = ProcessPool::new(1);
    let worker = within(pool.submit(task!(pid()))).await.unwrap();
    assert_eq!(within(pool.submit(task!(pid()))).await.unwrap(), worker);
    let died = within(pool.submit(call(|()| std::process::exit(3), ()))).await;
    assert!(matches!(died, Err::<(), _>(TaskError::Died { .. })));
    assert_ne!(within(pool.submit(task!(pid()))).await.unwrap(), worker);
    within(pool.close()).await;
}

/// One collector, as there is one subscriber a thread.
#[tokio::test]
async fn each_task_is_a_span_and_deaths_and_restarts_are_events() {
    let collector = Collector::default();
    let _guard = tracing::subscriber::set_default(collector.clone());
    let pool = ProcessPool::builder().workers(1).name("traced").build().unwrap();
    let worker = within(pool.submit(task!(pid())).name("fine")).await.unwrap();
    let panicked = within(pool.submit(call(|()| panic!("no"), ())).name("panics")).await;
    assert!(matches!(panicked, Err::<(), _>(TaskError::Panicked(_))));
    let died = within(pool.submit(call(|()| std::process::exit(3), ())).name("exits")).await;
    assert!(matches!(died, Err::<(), _>(TaskError::Died { .. })));
    let late = within(pool.submit(task!(endless())).name("hangs").timeout(Duration::from_millis(20))).await;
    assert!(matches!(late, Err(TaskError::TimedOut)));
    // Dropped as soon as it is submitted.
    assert!(pool_support::is_pending(pool.submit(task!(endless())).name("dropped")).await);
    within(pool.close()).await;

    let all = collector.0.lock().unwrap();
    let said = |text: &str, parts: &[&str]| parts.iter().all(|part| text.contains(part));
    let expect = |name: &str, outcome: &str| {
        let parts = [&*format!("name=\"{name}\""), &*format!("outcome=\"{outcome}\""), "pool=\"traced\""];
        assert!(all.closed.iter().any(|span| said(span, &parts)), "{name}, {outcome}: {:?}", all.closed);
    };
    expect("fine", "ok");
    expect("panics", "panicked");
    expect("exits", "died");
    expect("hangs", "timed out");
    expect("dropped", "cancelled");
    assert_eq!(all.open.len(), 0, "every span ends: {:?}", all.open);
    let fine = [&*format!("worker={worker} "), "queued=", "ran=", "outcome=\"ok\""];
    assert!(all.closed.iter().any(|span| said(span, &fine)), "{:?}", all.closed);
    let ended = ["message=worker ended", "status=exit status: 3", "cause=\"died\"", &*format!("pid={worker} ")];
    assert!(all.events.iter().any(|event| said(event, &ended)), "{:?}", all.events);
    assert!(all.events.iter().any(|event| said(event, &["cause=\"its task timed out\""])), "{:?}", all.events);
    assert!(all.events.iter().any(|event| said(event, &["message=worker restarted"])), "{:?}", all.events);
}
