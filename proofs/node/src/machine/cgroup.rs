//! What the control groups of this process leave it, in both versions of them.

use super::sources::Sources;

/// The most groups above one another that are looked at.
const DEPTH_MAX: usize = 32;

/// Limits of the groups that this process is in; the least of each on the way to the top.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Processor time in thousandths of a thread.
    pub cpu_milli: Option<u64>,
    /// Bytes of memory that the groups may have.
    pub memory: Option<u64>,
    /// Bytes of memory that may still be taken before one of the limits is reached.
    pub memory_left: Option<u64>,
}

/// Where a controller's files are.
struct Place {
    /// Of the group, from the hierarchy's mount point.
    group: String,
    /// The mount point, without the slash at its start.
    mount: String,
    is_unified: bool,
}

impl Limits {
    /// Reads the limits of this process.
    #[must_use]
    pub fn read(sources: &Sources) -> Self {
        let mut limits = Self::default();
        for place in places(sources, "cpu") {
            for folder in place.folders() {
                limits.cpu_milli = least(limits.cpu_milli, cpu_milli(sources, &folder, &place));
            }
        }
        for place in places(sources, "memory") {
            for folder in place.folders() {
                let Some((most, used)) = memory(sources, &folder, &place) else { continue };
                limits.memory = least(limits.memory, Some(most));
                limits.memory_left = least(limits.memory_left, Some(most.saturating_sub(used)));
            }
        }
        limits
    }
}

impl Place {
    /// The group's folder and those above it, down from the mount point.
    fn folders(&self) -> Vec<String> {
        let mut folders = vec![self.mount.clone()];
        let mut at = self.mount.clone();
        for part in self.group.split('/').filter(|part| !part.is_empty()).take(DEPTH_MAX) {
            // A container may see a path that leads out of its own mount.
            if part == ".." {
                break;
            }
            at = format!("{at}/{part}");
            folders.push(at.clone());
        }
        folders
    }
}

fn least(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}

/// The places of one controller: the second version's and the first's, as far as they are mounted.
fn places(sources: &Sources, controller: &str) -> Vec<Place> {
    let (Some(groups), Some(mounts)) =
        (sources.text("proc/self/cgroup"), sources.text("proc/self/mountinfo"))
    else {
        return Vec::new();
    };
    let mut places = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(group)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let is_unified = id == "0" && controllers.is_empty();
        if !is_unified && !controllers.split(',').any(|it| it == controller) {
            continue;
        }
        for (mount, root) in
            mounts.lines().filter_map(|line| mount_of(line, controller, is_unified))
        {
            // In a container, the group itself may be mounted.
            let group = group.strip_prefix(root.as_str()).unwrap_or(group).to_owned();
            places.push(Place { group, mount, is_unified });
        }
    }
    places
}

/// Mount point and mounted group of a line of `mountinfo`, if it is of the hierarchy that is looked for.
fn mount_of(line: &str, controller: &str, is_unified: bool) -> Option<(String, String)> {
    let (left, right) = line.split_once(" - ")?;
    let mut right = right.split(' ');
    let (kind, _, options) = (right.next()?, right.next()?, right.next()?);
    let fits = match kind {
        "cgroup2" => is_unified,
        "cgroup" => !is_unified && options.split(',').any(|it| it == controller),
        _ => false,
    };
    let mut left = left.split(' ').skip(3);
    let (root, mount) = (left.next()?, left.next().filter(|_| fits)?);
    Some((mount.trim_matches('/').to_owned(), root.trim_end_matches('/').to_owned()))
}

fn cpu_milli(sources: &Sources, folder: &str, place: &Place) -> Option<u64> {
    let (quota, period) = if place.is_unified {
        let text = sources.text(&format!("{folder}/cpu.max"))?;
        let (quota, period) = text.split_once(' ')?;
        (quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?)
    } else {
        let quota = sources.number(&format!("{folder}/cpu.cfs_quota_us"))?;
        let period = sources.number(&format!("{folder}/cpu.cfs_period_us"))?;
        // Without a quota it is -1.
        (u64::try_from(quota).ok()?, u64::try_from(period).ok()?)
    };
    quota.saturating_mul(1000).checked_div(period)
}

/// The limit and what is used of it.
fn memory(sources: &Sources, folder: &str, place: &Place) -> Option<(u64, u64)> {
    let [most, used] = if place.is_unified {
        ["memory.max", "memory.current"]
    } else {
        ["memory.limit_in_bytes", "memory.usage_in_bytes"]
    };
    // No limit is "max", or in the first version a number near 2^63.
    let most = sources.text(&format!("{folder}/{most}"))?.parse::<u64>().ok()?;
    let used = sources.number(&format!("{folder}/{used}")).unwrap_or_default();
    (most < 1 << 62).then(|| (most, u64::try_from(used).unwrap_or_default()))
}
