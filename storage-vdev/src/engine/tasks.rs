//! The tasks that a volume runs while it is open.

use std::rc::Rc;

use super::command::commander;
use super::commit::{committer, sealer};
use super::flush::journaler;
use super::free::deleter;
use super::gc::collector;
use super::holder::{registrar, renewer};
use super::state::Engine;
use super::upkeep::{housekeeper, prober};
use super::write::admitter;

/// What writes segments: recovery needs it already.
pub(super) fn spawn_writers(engine: &Rc<Engine>) {
    engine.runtime.spawn(sealer(Rc::clone(engine)));
    engine.runtime.spawn(committer(Rc::clone(engine)));
}

/// What serves requests, and looks after the volume.
pub(super) fn spawn_servers(engine: &Rc<Engine>) {
    engine.runtime.spawn(admitter(Rc::clone(engine)));
    engine.runtime.spawn(journaler(Rc::clone(engine)));
    engine.runtime.spawn(commander(Rc::clone(engine)));
    engine.runtime.spawn(renewer(Rc::clone(engine)));
    engine.runtime.spawn(registrar(Rc::clone(engine)));
    engine.runtime.spawn(prober(Rc::clone(engine)));
    engine.runtime.spawn(housekeeper(Rc::clone(engine)));
    engine.runtime.spawn(collector(Rc::clone(engine)));
    engine.runtime.spawn(deleter(Rc::clone(engine)));
}
