use std::sync::{Mutex, mpsc};

use futures::FutureExt as _;

use super::*;

/// Says how many desks there are.
struct Counted(Arc<()>);

impl Desk for Counted {
    type Role = ();
    type Request = ();
    type Told = ();
    type Answer = usize;
    type Shared = ();

    fn open(shared: &Arc<()>, (): ()) -> Self {
        Self(Arc::clone(shared))
    }

    fn hear(&self, (): ()) {}

    async fn handle(self: &Arc<Self>, (): ()) -> usize {
        Arc::strong_count(&self.0)
    }
}

#[test]
fn holders_that_are_made_here_are_not_counted() {
    let first = Holder::<Counted>::found((), ()).unwrap();
    let holders: Vec<_> = (0..3 * MOST_FOREIGN).map(|_| first.share(()).unwrap()).collect();
    for holder in &holders {
        holder.blocking_ask(()).unwrap();
    }
}

#[test]
fn one_holder_too_many_is_told_so_and_a_place_that_is_free_again_is_given() {
    let first = Holder::<Counted>::found((), ()).unwrap();
    // As if it had come to another process.
    let foreign = Holder::<Counted>::over(first.another(()).unwrap(), None);
    let mut holders: Vec<_> = (0..MOST_FOREIGN).map(|_| foreign.share(()).unwrap()).collect();
    for holder in &holders {
        holder.blocking_ask(()).unwrap();
    }
    for _ in 0..100 {
        let refused = foreign.share(()).unwrap().blocking_ask(());
        assert!(matches!(refused, Err(CallError::Refused { .. })), "{refused:?}");
        foreign.blocking_ask(()).unwrap();
    }
    holders.pop();
    // The end of one is seen in its own time.
    let begun = std::time::Instant::now();
    while foreign.share(()).unwrap().blocking_ask(()).is_err() {
        assert!(begun.elapsed().as_secs() < 60, "its place is not free again");
    }
    for holder in holders.iter().chain([&first, &foreign]) {
        holder.blocking_ask(()).unwrap();
    }
}

/// Never answers.
struct Silent;

impl Desk for Silent {
    type Role = ();
    type Request = ();
    type Told = ();
    type Answer = ();
    type Shared = ();

    fn open(_: &Arc<()>, (): ()) -> Self {
        Self
    }

    fn hear(&self, (): ()) {}

    async fn handle(self: &Arc<Self>, (): ()) {
        std::future::pending::<()>().await;
    }
}

#[tokio::test]
async fn one_question_too_many_is_an_error_and_none_when_another_is_withdrawn() {
    let holder = Holder::<Silent>::found((), ()).unwrap();
    let ask = || Box::pin(holder.ask(()));
    let mut open: Vec<_> = (0..MOST_ASKED).map(|_| ask()).collect();
    for question in &mut open {
        assert!(question.now_or_never().is_none());
    }
    assert!(matches!(ask().now_or_never(), Some(Err(CallError::Io(_)))));
    open.pop();
    assert!(ask().now_or_never().is_none());
}

/// Writes down what it hears and is asked, and its end; the answer is what was written before.
struct Scribe {
    log: Arc<Mutex<Vec<u32>>>,
    name: u32,
}

impl Desk for Scribe {
    type Role = u32;
    type Request = u32;
    type Told = u32;
    type Answer = Vec<u32>;
    type Shared = Mutex<Vec<u32>>;

    fn open(log: &Arc<Self::Shared>, name: u32) -> Self {
        Self { log: Arc::clone(log), name }
    }

    fn hear(&self, word: u32) {
        self.log.lock().unwrap().push(word);
    }

    async fn handle(self: &Arc<Self>, word: u32) -> Vec<u32> {
        let mut log = self.log.lock().unwrap();
        let before = log.clone();
        log.push(word);
        before
    }
}

impl Drop for Scribe {
    fn drop(&mut self) {
        self.log.lock().unwrap().push(self.name);
    }
}

/// Keeps the broker's thread from doing anything until it is dropped.
fn hold_up() -> mpsc::Sender<()> {
    let (release, released) = mpsc::channel::<()>();
    let (holds, held_up) = mpsc::channel();
    background::runtime().unwrap().spawn(async move {
        holds.send(()).unwrap();
        let _ = released.recv();
    });
    held_up.recv().unwrap();
    release
}

/// A question that has left, and was not answered.
fn asked(holder: &Arc<Holder<Scribe>>, word: u32) -> impl Future<Output = Vec<u32>> + use<> {
    let theirs = Arc::clone(holder);
    let mut question = Box::pin(async move { theirs.ask(word).await.unwrap() });
    while {
        assert!((&mut question).now_or_never().is_none());
        holder.under_way() > 0
    } {}
    question
}

/// Of two holders, the second one's task is woken first, by a word that comes before all that the first one does. Then the second
/// one asks, and is told what was written before.
async fn known<R>(does: impl FnOnce(Arc<Holder<Scribe>>) -> R) -> Vec<u32> {
    let second = Holder::<Scribe>::found(Mutex::default(), 200).unwrap();
    // As if it had come to another process.
    let first = Arc::new(Holder::<Scribe>::over(second.another(100).unwrap(), None));
    let second = Arc::new(second);
    first.ask(0).await.unwrap();
    second.ask(0).await.unwrap();
    let held_up = hold_up();
    second.tell(1);
    let _kept = does(first);
    let question = asked(&second, 9);
    drop(held_up);
    question.await
}

/// Each was done, or was known, after what had been asked because of it.
#[tokio::test]
async fn what_a_holder_has_told_is_done_before_what_another_one_asks_then() {
    for times in [1, 200] {
        // So many are more than its task reads at a time.
        let tells = |first: Arc<Holder<_>>| {
            (0..times).for_each(|_| first.tell(2));
            first
        };
        let heard = known(tells).await;
        assert_eq!(heard.iter().filter(|word| **word == 2).count(), times, "{heard:?}");
    }
}

#[tokio::test]
async fn what_a_holder_has_asked_is_done_before_what_another_one_asks_then() {
    assert_eq!(known(|first| asked(&first, 2)).await, [0, 0, 1, 2]);
}

#[tokio::test]
async fn a_holder_that_has_ended_is_no_more_when_another_one_asks_then() {
    assert_eq!(known(drop).await, [0, 0, 1, 100]);
}

#[tokio::test]
async fn a_holder_that_another_process_has_just_made_is_heard_before_what_another_one_asks_then() {
    let makes = |first: Arc<Holder<_>>| {
        let made = first.share(300).unwrap();
        made.tell(2);
        (first, made)
    };
    assert_eq!(known(makes).await, [0, 0, 1, 2]);
}
