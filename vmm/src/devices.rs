//! The devices of one VM and their queues, drained together.

use std::os::fd::BorrowedFd;

use abi::DEVICES_MAX;
use rustix::event::{PollFd, PollFlags};
use vdev::{Device, DeviceError, DeviceQueue, GuestRam, Progress, QueueLayout, RingError};

use crate::boot::BootDevice;

/// A device that broke or was broken, with its name.
#[derive(Debug, thiserror::Error)]
#[error("{device}: {source}")]
pub struct DeviceFailure {
    /// The device's name: its kind and the name in the spec.
    pub device: String,
    /// What happened.
    pub source: DeviceError,
}

/// A device with its name in messages.
pub struct NamedDevice {
    /// The name.
    pub name: String,
    /// The device.
    pub device: Box<dyn Device>,
}

struct Attached {
    name: String,
    device: Box<dyn Device>,
    queues: Vec<DeviceQueue>,
    first_queue: u32,
    /// What its driver accepted last.
    accepted: u64,
}

/// The devices of one VM, attached to their queues.
pub struct Devices {
    attached: Vec<Attached>,
}

impl Devices {
    /// Attaches each device to its queues, which lie in `layouts` in the same order.
    ///
    /// # Errors
    /// A queue doesn't lie in `ram` (a bug of the plan).
    pub fn attach(
        devices: Vec<NamedDevice>,
        layouts: &[QueueLayout],
        ram: &GuestRam,
    ) -> Result<Self, RingError> {
        let mut attached = Vec::with_capacity(devices.len());
        let mut layouts = layouts.iter();
        let mut first_queue = 0;
        for NamedDevice { name, device } in devices {
            let count = device.queue_sizes().len();
            let queues = layouts
                .by_ref()
                .take(count)
                .enumerate()
                .map(|(index, layout)| DeviceQueue::new(index, *layout, ram))
                .collect::<Result<Vec<_>, _>>()?;
            attached.push(Attached { name, device, queues, first_queue, accepted: 0 });
            first_queue += count as u32;
        }
        Ok(Self { attached })
    }

    /// Serves every queue of every device. The bits of [`Progress::used_queues`] are the queues'
    /// numbers in the boot page; queues whose driver wants no events are left out.
    ///
    /// # Errors
    /// A device or its ring is broken: the VM ends.
    pub fn process(&mut self, ram: &GuestRam, now_ns: u64) -> Result<Progress, DeviceFailure> {
        let mut all = Progress::default();
        for Attached { name, device, queues, first_queue, .. } in &mut self.attached {
            let progress = device
                .process(queues, ram, now_ns)
                .map_err(|source| DeviceFailure { device: name.clone(), source })?;
            for (queue, bit) in queues.iter().zip(0..) {
                let used = progress.used_queues >> bit & 1 == 1;
                if used && queue.wants_used_events(ram) {
                    all.used_queues |= 1 << (*first_queue + bit);
                }
            }
            all.deadline_ns = [all.deadline_ns, progress.deadline_ns].into_iter().flatten().min();
        }
        Ok(all)
    }

    /// The drivers take these features, by the devices' places. What was not offered does not count.
    pub fn accept(&mut self, features: [u64; DEVICES_MAX]) {
        for (attached, features) in self.attached.iter_mut().zip(features) {
            if attached.accepted != features {
                attached.accepted = features;
                attached.device.accept(features & attached.device.features());
            }
        }
    }

    /// Does what can't wait for the guest; says when to be called again.
    pub fn attend(&mut self, now_ns: u64) -> Option<u64> {
        self.attached.iter_mut().filter_map(|attached| attached.device.attend(now_ns)).min()
    }

    /// The descriptors whose readability means work.
    pub fn poll_fds<'a>(&'a self) -> Vec<PollFd<'a>> {
        let mut fds = Vec::new();
        let mut watch = |fd: BorrowedFd<'a>| fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
        self.attached.iter().for_each(|attached| attached.device.ready_fds(&mut watch));
        fds
    }

    /// Closes every device, all of them even if one fails.
    ///
    /// # Errors
    /// The first failure.
    pub fn close(&mut self) -> Result<(), DeviceFailure> {
        let mut outcome = Ok(());
        for Attached { name, device, .. } in &mut self.attached {
            let closed =
                device.close().map_err(|source| DeviceFailure { device: name.clone(), source });
            outcome = outcome.and(closed);
        }
        outcome
    }
}

/// What the boot page says of a device.
#[must_use]
pub fn describe(device: &dyn Device) -> BootDevice {
    BootDevice {
        device_id: device.device_id(),
        features: device.features(),
        config: device.config_space(),
        queue_count: device.queue_sizes().len(),
    }
}
