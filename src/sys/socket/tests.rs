use std::sync::mpsc;
use std::thread;

use bytes::BytesMut;

use super::*;
use crate::sys::storm::Storm;

fn read(socket: &OwnedFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut buf = BytesMut::with_capacity(64);
    let received = recv_into(socket, &mut buf, 64, Wait::No)?;
    assert!(!received.fds_lost);
    Ok((buf.to_vec(), received.fds))
}

#[test]
fn fds_arrive_with_the_first_byte_and_are_close_on_exec() {
    let (a, b) = stream_pair().unwrap();
    let (c, d) = stream_pair().unwrap();
    assert_eq!(send(&a, &[IoSlice::new(b"hi")], &[c.as_fd()]).unwrap(), 2);
    let (bytes, mut fds) = read(&b).unwrap();
    assert_eq!(bytes, b"hi");
    let moved = fds.pop().unwrap();
    assert!(fds.is_empty());
    assert!(rustix::io::fcntl_getfd(&moved).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    drop(c);
    send(&moved, &[IoSlice::new(b"!")], &[]).unwrap();
    assert_eq!(read(&d).unwrap().0, b"!");
}

#[test]
fn the_most_fds_of_one_call_arrive_whole_and_one_more_is_refused() {
    let (a, b) = stream_pair().unwrap();
    let most = vec![a.as_fd(); MAX_FDS_PER_CALL];
    send(&a, &[IoSlice::new(b"x")], &most).unwrap();
    assert_eq!(read(&b).unwrap().1.len(), MAX_FDS_PER_CALL);
    let error = send(&a, &[IoSlice::new(b"x")], &vec![a.as_fd(); MAX_FDS_PER_CALL + 1]).unwrap_err();
    assert_eq!(error.to_string(), "too many file descriptors for one message");
}

/// Asks for a pidfd of the sender with each message; before Linux 6.5 there is none.
fn ask_for_pidfds(socket: &OwnedFd) -> bool {
    const SO_PASSPIDFD: libc::c_int = 76;
    let yes: libc::c_int = 1;
    // SAFETY: `yes` is as many bytes as is said.
    let asked =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PASSPIDFD, (&raw const yes).cast(), 4) };
    asked == 0
}

fn pidfds_of_this_process() -> usize {
    let me = format!("Pid:\t{}", std::process::id());
    let infos = std::fs::read_dir("/proc/self/fdinfo").unwrap();
    infos
        .filter(|info| {
            std::fs::read_to_string(info.as_ref().unwrap().path()).is_ok_and(|info| info.lines().any(|line| line == me))
        })
        .count()
}

/// Whoever has the socket, too, may have asked for it.
#[test]
fn a_pidfd_that_comes_with_a_message_is_closed_and_takes_no_room_of_its_fds() {
    let (a, b) = stream_pair().unwrap();
    rustix::net::sockopt::set_socket_passcred(&b, true).unwrap();
    if !ask_for_pidfds(&b) {
        return;
    }
    let before = pidfds_of_this_process();
    for _ in 0..100 {
        send(&a, &[IoSlice::new(b"x")], &[]).unwrap();
        assert_eq!(read(&b).unwrap().1.len(), 0);
    }
    assert!(pidfds_of_this_process() < before + 50, "they are open");
    send(&a, &[IoSlice::new(b"x")], &vec![a.as_fd(); MAX_FDS_PER_CALL]).unwrap();
    assert_eq!(read(&b).unwrap().1.len(), MAX_FDS_PER_CALL);
}

#[test]
fn a_packet_that_does_not_fit_is_an_error_not_a_part() {
    let (a, b) = packet_pair().unwrap();
    send(&a, &[IoSlice::new(&[7; 65])], &[]).unwrap();
    assert_eq!(read(&b).unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
}

#[test]
fn sending_to_a_closed_peer_is_an_error_and_no_signal() {
    let (a, b) = stream_pair().unwrap();
    drop(b);
    // A child that another test starts just then has a copy until it is its program.
    let error = loop {
        match send(&a, &[IoSlice::new(b"x")], &[]) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => break error,
            _ => thread::yield_now(),
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

/// A blocking send to a queue with room waited for as long as a profiler's timer went on.
#[test]
fn a_wait_with_a_bound_ends_whatever_signals_come() {
    let (socket, _peer) = stream_pair().unwrap();
    let (told, over) = mpsc::channel();
    thread::spawn(move || {
        let _storm = Storm::new();
        told.send(wait_within(&socket, Ready::Read, Duration::from_millis(5))).unwrap();
    });
    over.recv_timeout(Duration::from_secs(20)).expect("each signal made it longer").unwrap();
}
