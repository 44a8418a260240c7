//! Running a program to its end: its status, its output, its input, its arguments and its surroundings.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use multiproc::{Command, CommandError};

#[tokio::test]
async fn a_status_is_passed_on() {
    assert_eq!(Command::shell("exit 47").status().await.unwrap().code(), Some(47));
    assert!(Command::new("true").status().await.unwrap().success());
}

#[tokio::test]
async fn run_names_program_status_and_the_end_of_stderr() {
    let error = Command::shell("echo out; echo the reason >&2; exit 47").run().await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("47") && text.contains("the reason") && text.contains("/bin/sh"), "{text}");
    assert_eq!(error.output().unwrap().stdout, b"out\n");
    assert!(matches!(error, CommandError::Failed { output, .. } if output.status.code() == Some(47)));
    // However long it is, its end is what is shown.
    let error = Command::shell("seq 10000 >&2; exit 1").run().await.unwrap_err();
    let text = error.to_string();
    assert!(text.ends_with("9999\n10000") && !text.contains("\n1\n") && text.len() < 2048, "{text}");
    assert!(error.output().unwrap().stderr.starts_with(b"1\n2\n"), "all of it is in the output");
}

#[tokio::test]
async fn read_cuts_one_line_end_and_wants_utf_8() {
    for (printed, text) in [("a\\n", "a"), ("a\\r\\n", "a"), ("a\\n\\n", "a\n"), ("a", "a"), ("", "")] {
        assert_eq!(Command::new("printf").arg(printed).read().await.unwrap(), text);
    }
    let error = Command::new("printf").arg("\\377").read().await.unwrap_err();
    assert!(matches!(error, CommandError::Io(error) if error.kind() == std::io::ErrorKind::InvalidData));
}

#[tokio::test]
async fn arguments_arrive_unchanged() {
    let args = [
        OsString::from("two words"),
        "".into(),
        "'\"\\$HOME `x` *".into(),
        "line\nend\n".into(),
        OsString::from_vec(vec![0xff, b'x', 0x80]),
        "-n".into(),
    ];
    let output = Command::new("printf").arg("%s\\0").args(&args).output().await.unwrap();
    let expected: Vec<u8> = args.iter().flat_map(|arg| [arg.as_encoded_bytes(), b"\0"].concat()).collect();
    assert_eq!(output.stdout, expected);
}

#[tokio::test]
async fn the_environment_is_set_removed_and_cleared_exactly() {
    let env = Command::new("env").env_clear().env("A", "1").env("B", "x=y").env("C", "").env("B", "2").env_remove("C");
    let mut lines: Vec<_> = env.read().await.unwrap().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["A=1", "B=2"]);

    let env = Command::new("env").env_remove("PATH").env("CHILD_OUTPUT_TEST", "set").read().await.unwrap();
    assert!(
        !env.lines().any(|line| line.starts_with("PATH=")) && env.lines().any(|line| line == "CHILD_OUTPUT_TEST=set")
    );
    assert!(env.lines().count() > 2 || std::env::vars_os().count() <= 2, "the rest is inherited");
    for name in ["", "A=B"] {
        let error = Command::new("true").env(name, "x").status().await.unwrap_err();
        assert!(matches!(error, CommandError::Invalid { .. }));
        assert!(error.to_string().contains(&format!("{name:?} can't be the name")), "{error}");
    }
}

#[tokio::test]
async fn a_name_is_looked_up_in_the_path_that_the_program_gets() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/bin/echo", dir.path().join("only-here")).unwrap();
    let command = || Command::new("only-here").arg("found");
    assert_eq!(command().env("PATH", dir.path()).read().await.unwrap(), "found");
    let error = command().env("PATH", "/nowhere").read().await.unwrap_err();
    assert!(
        matches!(error, CommandError::Spawn { program, source } if program == "only-here" && source.kind() == std::io::ErrorKind::NotFound)
    );
}

#[tokio::test]
async fn arg0_and_the_working_directory_are_set() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    assert_eq!(Command::new("pwd").arg("-P").current_dir(&dir).read().await.unwrap(), dir.to_str().unwrap());
    let name = Command::new("sh").arg0("called").args(["-c", "cat /proc/$$/cmdline"]).read().await.unwrap();
    assert!(name.starts_with("called\0"), "{name:?}");
}

#[tokio::test]
async fn no_input_is_the_end_of_input_at_once() {
    assert_eq!(Command::new("cat").output().await.unwrap().stdout, b"");
    assert_eq!(Command::new("cat").input("").output().await.unwrap().stdout, b"");
    assert!(Command::new("cat").input("").status().await.unwrap().success());
}

#[tokio::test]
async fn stderr_into_stdout_keeps_the_order() {
    let script = "for i in 1 2 3 4 5 6 7 8 9; do echo out $i; echo err $i >&2; done";
    let expected = (1..10).map(|i| format!("out {i}\nerr {i}\n")).collect::<Vec<_>>().concat();
    let output = Command::shell(script).stderr_to_stdout().output().await.unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    assert_eq!(output.stderr, b"");

    // Also where stdout was given, be it a pipe or a file.
    let mut child = Command::shell(script).stdout(Stdio::piped()).stderr_to_stdout().spawn().unwrap();
    assert_eq!(String::from_utf8(child.communicate().await.unwrap().stdout).unwrap(), expected);
    let file = tempfile::NamedTempFile::new().unwrap();
    Command::shell(script).stdout(file.reopen().unwrap()).stderr_to_stdout().status().await.unwrap();
    assert_eq!(std::fs::read_to_string(file.path()).unwrap(), expected);
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused() {
    let twice = [
        Command::new("cat").input("x").stdin(Stdio::null()),
        Command::new("cat").stderr_to_stdout().stderr(Stdio::null()),
        Command::new("cat").stdout(Stdio::null()).pipe(Command::new("cat")),
        Command::new("cat").pipe(Command::new("cat").input("x")),
        Command::new("cat").inherit_fd(std::io::pipe().unwrap().0, 1),
        Command::new("cat").stderr(Stdio::piped()).pipe(Command::new("cat")),
        Command::new("cat").duplex::<(), ()>().unwrap().0.stdin(Stdio::null()),
        Command::new("cat").duplex::<(), ()>().unwrap().0.duplex::<(), ()>().unwrap().0,
    ];
    for command in twice {
        let text = command.to_string();
        assert!(matches!(command.output().await, Err(CommandError::Invalid { .. })), "{text}");
    }
}

#[tokio::test]
async fn more_output_than_allowed_kills_and_returns_what_was_read() {
    let start = Instant::now();
    let error = Command::new("yes").max_output(100_000).output().await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(10));
    let CommandError::TooLarge { output, max: 100_000, .. } = error else { panic!("{error}") };
    assert_eq!(output.stdout.len(), 100_000);
    assert!(output.stdout.starts_with(b"y\ny\n") && !output.status.success());

    // It ends of that, and not of a pipe that nobody reads any more.
    for _ in 0..50 {
        let error = Command::new("yes").max_output(1000).output().await.unwrap_err();
        assert_eq!(error.output().unwrap().status.signal(), Some(libc::SIGKILL), "{error:?}");
    }

    // Both streams count, and exactly as much as allowed is fine.
    let both = || Command::shell("printf 12345; printf 12345 >&2");
    assert_eq!(both().max_output(10).output().await.unwrap().stderr, b"12345");
    assert!(matches!(both().max_output(9).output().await, Err(CommandError::TooLarge { .. })));
}

#[tokio::test]
async fn what_a_program_leaves_running_delays_nothing() {
    let start = Instant::now();
    let output = Command::shell("sleep 1000 & echo hi").output().await.unwrap();
    assert_eq!(output.stdout, b"hi\n");
    // Also if it has left the group.
    let output = Command::shell("setsid sleep 5 & echo hi").output().await.unwrap();
    assert_eq!(output.stdout, b"hi\n");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());

    // Also if it never stops writing.
    // It ends when the other one has left the group, and has turned from the substitution to stdout.
    let flood = || Command::shell("exec 3>&1; up=$(setsid sh -c 'echo up; exec yes >&3' &); exit 7");
    assert_eq!(flood().output().await.unwrap().status.code(), Some(7));
    let error = flood().max_output(1000).output().await.unwrap_err();
    assert!(matches!(error, CommandError::TooLarge { .. }));
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());

    let mut child = Command::shell("sleep 1000 & echo hi").stdout(Stdio::piped()).spawn().unwrap();
    assert!(child.wait().await.unwrap().success());
    assert_eq!(child.communicate().await.unwrap().stdout, b"hi\n");
}

#[tokio::test]
async fn what_a_finished_program_used_is_known() {
    let mut child = Command::shell("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done").spawn().unwrap();
    assert!(child.usage().is_none());
    child.wait().await.unwrap();
    let usage = child.usage().unwrap();
    assert!(usage.max_rss > 100 << 10 && usage.max_rss < 1 << 30, "{usage:?}");
    assert!(usage.user_time + usage.system_time > Duration::ZERO, "{usage:?}");
}

#[tokio::test]
async fn an_open_file_can_be_given_a_number() {
    use std::io::{Seek as _, Write as _};
    let mut a = tempfile::tempfile().unwrap();
    let mut b = tempfile::tempfile().unwrap();
    for (file, text) in [(&mut a, "A"), (&mut b, "B")] {
        file.write_all(text.as_bytes()).unwrap();
        file.rewind().unwrap();
    }
    let list = "ls -1 /proc/self/fd";
    let open = |text: String| text.split_whitespace().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    let before = open(Command::shell(list).read().await.unwrap());
    let command = Command::shell(format!("cat <&8; cat <&9; echo; {list}")).inherit_fd(a, 8).inherit_fd(b, 9);
    let mut after = open(command.read().await.unwrap());
    assert!(after.remove("AB"), "{after:?}");
    // Those two and nothing else; whoever runs this test may have given it more.
    let expected: std::collections::BTreeSet<_> = before.union(&["8".into(), "9".into()].into()).cloned().collect();
    assert_eq!(after, expected);
    let missing = Command::new("/no/such").inherit_fd(std::io::pipe().unwrap().0, 7).status().await.unwrap_err();
    assert!(matches!(missing, CommandError::Spawn { source, .. } if source.kind() == std::io::ErrorKind::NotFound));
}

#[tokio::test]
async fn it_runs_as_another_user_where_that_is_allowed() {
    let result = Command::shell("id -u; id -g; id -G").uid(65534).gid(65533).read().await;
    if rustix::process::geteuid().is_root() {
        assert_eq!(result.unwrap(), "65534\n65533\n65533");
    } else {
        let refused = result.unwrap_err();
        assert!(
            matches!(&refused, CommandError::Spawn { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied)
        );
    }
}

#[tokio::test]
async fn limits_umask_priority_and_session_are_set() {
    let command = Command::shell("umask; ulimit -n; ulimit -v; ulimit -t; nice")
        .umask(0o027)
        .open_files_limit(77)
        .memory_limit(512 << 20)
        .cpu_time_limit(Duration::from_millis(6500))
        .nice(5);
    assert_eq!(command.read().await.unwrap(), "0027\n77\n524288\n7\n5");
    let ids = |text: String| text.split_whitespace().map(|id| id.parse::<u32>().unwrap()).collect::<Vec<_>>();
    let stat = "set -- $(cat /proc/$$/stat); echo $1 $5 $6";
    let plain = ids(Command::shell(stat).read().await.unwrap());
    assert!(plain[0] == plain[1] && plain[0] != plain[2], "a group of its own, in our session: {plain:?}");
    let session = ids(Command::shell(stat).new_session().read().await.unwrap());
    assert!(session[0] == session[1] && session[0] == session[2], "{session:?}");
}
