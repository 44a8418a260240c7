use super::*;
use crate::sys::ledger::Reader;
use crate::wire::frame::Limits;

/// A worker's side, and what its parent has of it.
struct Sides {
    answers: Option<Answers>,
    outbox: Outbox,
    socket: Socket,
    parent: Arc<Ledger>,
    reader: Reader,
    parents_socket: Socket,
    inbox: Inbox,
}

fn sides() -> Sides {
    let (parent, fd) = Ledger::create().unwrap();
    let parent = Arc::new(parent);
    let (theirs, ours) = socket::stream_pair().unwrap();
    Sides {
        answers: Some(Answers::new(Arc::new(Ledger::open(fd).unwrap()))),
        outbox: Outbox::default(),
        socket: Socket::new(ours),
        reader: Reader::new(Arc::clone(&parent)),
        parent,
        parents_socket: Socket::new(theirs),
        inbox: Inbox::new(Limits::new(1024, 0)),
    }
}

impl Sides {
    fn answers(&mut self) -> &mut Answers {
        self.answers.as_mut().unwrap()
    }

    /// A task comes, and is answered.
    fn work(&mut self) {
        let answers = self.answers();
        answers.since = Some(answers.note_began());
        answers.count = 1;
        assert!(answers.ring.append(&[0; 20]));
    }

    fn take_in(&mut self) {
        self.reader.take(&mut bytes::BytesMut::new()).unwrap();
    }

    /// Tells the parent, if there is something to tell, and says whether there was.
    fn tells(&mut self) -> bool {
        tell(&mut self.answers, &mut self.outbox, &self.socket);
        self.inbox.try_frame(&self.parents_socket).unwrap().is_some_and(|frame| frame.kind == Kind::Bell as u8)
    }
}

#[test]
fn the_parent_is_told_once_of_answers_and_not_of_those_that_it_has_taken_in() {
    let mut sides = sides();
    assert!(!sides.tells(), "there are none");
    sides.work();
    assert!(sides.tells());
    assert!(!sides.tells());
    sides.take_in();
    sides.work();
    sides.take_in();
    assert!(!sides.tells(), "it has them");
    sides.work();
    sides.take_in();
    sides.work();
    assert!(sides.tells(), "it has one of two");
}

#[test]
fn the_parent_is_told_that_a_task_was_passed_whatever_it_has_taken_in() {
    let mut sides = sides();
    sides.work();
    sides.take_in();
    sides.answers().passed = true;
    assert!(sides.tells());
    assert!(!sides.tells());
}

#[test]
fn a_worker_is_looked_for_with_a_new_answer_after_a_task_that_came_soon() {
    let mut sides = sides();
    sides.parent.look_for_answer(true);
    for (done, came, is_soon) in
        [(None, 5, false), (Some(5), 5 + GLANCE, true), (Some(5), 6 + GLANCE, false), (Some(5), 5, true)]
    {
        sides.work();
        sides.answers().done = done;
        sides.answers().came_at(came);
        assert_eq!(sides.answers().is_looked_for(), is_soon, "{done:?} {came}");
        sides.tells();
        assert!(!sides.answers().is_looked_for(), "it has been told");
    }
    sides.work();
    sides.answers().done = Some(5);
    sides.answers().came_at(5);
    assert!(sides.answers().is_looked_for());
    sides.answers().passed = true;
    assert!(!sides.answers().is_looked_for(), "there is more to be told");
    sides.answers().passed = false;
    sides.parent.note_sender();
    assert!(!sides.answers().is_looked_for(), "nobody looks yet");
}

/// Where both share a processor, or many tasks came at once, it is quicker through the socket.
#[test]
fn a_larger_answer_is_where_it_may_be_found_if_its_task_came_alone_from_another_processor() {
    sys::on_last_processor(|| {
        let mut sides = sides();
        sides.work();
        assert_eq!(sides.answers().most(), SMALL, "nobody knows yet");
        assert!(!sides.answers().shares_processor());
        assert_eq!(sides.answers().most(), ALONE);
        sides.answers().count = 2;
        assert_eq!(sides.answers().most(), SMALL);
        sides.work();
        sides.parent.note_sender();
        assert!(sides.answers().shares_processor());
        assert_eq!(sides.answers().most(), SMALL);
    });
}

/// What it holds is somebody's sign that it is over with it, whatever comes next.
#[test]
fn a_task_that_was_taken_back_leaves_nothing_open_in_the_worker_that_waits() {
    let Sides { answers, socket, parent, parents_socket, outbox, inbox: mut parents_inbox, .. } = sides();
    parent.take_back(1);
    let (held, end) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut parents_outbox = Outbox::default();
    let fds = vec![std::os::fd::OwnedFd::from(held).into()].into();
    parents_outbox.push(Frame { kind: Kind::Run as u8, id: 1, fds, ..Frame::default() });
    parents_outbox.flush(&parents_socket).unwrap();
    drop(parents_outbox);
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let server = Server {
                socket: &socket,
                inbox: Inbox::new(Limits::default()),
                frame: Frame::default(),
                outbox,
                answers,
                scratch: Parts::default(),
                max_body: 1024,
                life: Life::UntilEnd,
                busy_poll: Duration::ZERO,
                attempt: 1,
            };
            server.run()
        });
        end.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        let read = std::io::Read::read(&mut &end, &mut [0]);
        // It can't tell a parent that is gone how far it has come, and would end for that.
        let told = parents_inbox.blocking_frame(&parents_socket).unwrap().map(|frame| frame.kind);
        drop(parents_socket);
        assert_eq!(told, Some(Kind::Bell as u8));
        assert_eq!(worker.join().unwrap(), 0);
        assert_eq!(read.unwrap(), 0, "while it waited for another one");
    });
}
