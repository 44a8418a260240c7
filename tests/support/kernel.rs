//! What this kernel can do.

/// Before Linux 6.9 a group can't be reached without its leader. Where that is so it is said, for who asks skips something then.
pub(crate) fn has_group_signals() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let has = (numbers.next(), numbers.next()) >= (Some(6), Some(9));
    if !has {
        eprintln!("skipped: Linux {} can't signal a group whose leader has gone", release.trim_end());
    }
    has
}
