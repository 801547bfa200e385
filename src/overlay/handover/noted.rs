//! Notes about the objects in use: what a daemon writes down about each, so that another one can go
//! on after it was killed.
//!
//! A note says where the object is at this moment: by which name, or what is left of one without a
//! name. The handover of a daemon at work says the same of all objects at once.

use std::ffi::OsString;
use std::sync::Arc;

use super::packed::{ACCESSES, number_of};
use super::{Handover, Named, Nameless};
use crate::errno::{EINVAL, Error};
use crate::layer::{Access, Kind, Layer, Result};
use crate::overlay::Overlay;
use crate::overlay::node::{LinkCount, Node, Stored};
use crate::packed::{Packer, Unpacker};

/// Where an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// It has a name.
    Place(Place),
    /// It has no name.
    Nameless(NamelessNote),
    /// It has no name, and only the memory of the daemon has what its data are.
    Unknown {
        /// The id of its node.
        id: u64,
    },
}

/// A name of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The id of its node.
    pub id: u64,
    /// The inode number that it shows. 0: no request has asked for it.
    pub ino: u64,
    /// The id of the directory with the name. The root has 0.
    pub parent: u64,
    /// The name.
    pub name: OsString,
}

/// An object without a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamelessNote {
    /// The id of its node.
    pub id: u64,
    /// The number in its layer of the open file that is left of it. None: it has a place.
    pub open: Option<u64>,
    /// Whether it has data.
    pub is_file: bool,
    /// All else but the open file.
    bytes: Vec<u8>,
}

impl Note {
    /// Returns the id of the node of the object.
    pub fn id(&self) -> u64 {
        match self {
            Note::Place(Place { id, .. }) | Note::Nameless(NamelessNote { id, .. }) | Note::Unknown { id } => *id,
        }
    }

    /// Appends the note.
    pub fn pack(&self, to: &mut Packer) {
        match self {
            Note::Place(place) => {
                to.number(0);
                place.pack(to);
            }
            Note::Nameless(NamelessNote { id, open, is_file, bytes }) => {
                to.numbers(&[1, *id, (*is_file).into()]);
                to.option(*open, Packer::number);
                to.bytes(bytes);
            }
            Note::Unknown { id } => to.numbers(&[2, *id]),
        }
    }

    /// Takes a note.
    ///
    /// # Errors
    ///
    /// - EINVAL: the bytes are none.
    pub fn unpack(from: &mut Unpacker<'_>) -> Result<Self> {
        match from.number()? {
            0 => Place::unpack(from).map(Note::Place),
            1 => {
                let (id, is_file, open) = (from.number()?, from.flag()?, from.option(Unpacker::number)?);
                Ok(Note::Nameless(NamelessNote { id, open, is_file, bytes: from.bytes()?.to_owned() }))
            }
            2 => Ok(Note::Unknown { id: from.number()? }),
            _ => Err(Error::new(EINVAL)),
        }
    }
}

impl Place {
    /// Appends the place.
    pub fn pack(&self, to: &mut Packer) {
        to.numbers(&[self.id, self.ino, self.parent]);
        to.text(&self.name);
    }

    /// Takes a place.
    ///
    /// # Errors
    ///
    /// - EINVAL: the bytes are none.
    pub fn unpack(from: &mut Unpacker<'_>) -> Result<Self> {
        Ok(Self { id: from.number()?, ino: from.number()?, parent: from.number()?, name: from.text()? })
    }
}

impl<L: Layer> Overlay<L> {
    /// Notes where an object other than the root is. Asks no layer.
    pub fn note(&self, node: &Arc<Node<L>>) -> Note {
        let state = node.state.lock();
        let Some(place) = state.places.first() else {
            drop(state);
            return self.note_without_name(node);
        };
        let (parent, name) = (place.parent.id(), place.name.to_os_string());
        Note::Place(Place { id: node.id(), ino: state.ino.unwrap_or(0), parent, name })
    }

    /// Whether no known name leads to an object.
    pub fn is_nameless(&self, node: &Arc<Node<L>>) -> bool {
        !self.is_root(node) && node.state.lock().places.is_empty()
    }

    /// Notes an object without a name, or what it will be once it has lost its only known name.
    /// Asks no layer.
    pub fn note_without_name(&self, node: &Arc<Node<L>>) -> Note {
        let id = node.id();
        let state = node.state.lock();
        let has_data_elsewhere = state.file.as_ref().is_some_and(|open| open.from_lower.is_some());
        let Some(ino) = state.ino.filter(|_| state.stored.partial().is_none() && !has_data_elsewhere) else {
            return Note::Unknown { id };
        };
        let mut nameless = self.nameless(node, &state, ino);
        if let Some(place) = state.places.first() {
            let links = state.attr.filter(|_| node.kind() != Kind::Dir).map_or(1, |attr| state.links.count(attr.nlink));
            let left = links.saturating_sub(1);
            nameless.links = if left > 0 { LinkCount::Counted(left) } else { LinkCount::NONE };
            let is_indexed = matches!(state.stored, Stored::Indexed(_));
            nameless.origin = nameless.origin.filter(|_| left > 0 || is_indexed && !state.upper);
            match state.upper {
                // The loss of the last name removes the entry in the work directory too.
                true => nameless.work_name = nameless.work_name.filter(|_| left > 0),
                false if is_indexed => {}
                false => nameless.orphan = Some(self.stack.names_of(&place.dir, &place.name)),
            }
        }
        drop(state);
        nameless.note()
    }
}

impl<L: Layer> Nameless<L> {
    fn note(&self) -> Note {
        let is_open_only = self.upper && self.work_name.is_none();
        match (is_open_only, self.attr) {
            (true, None) => Note::Unknown { id: self.id },
            (_, attr) => {
                let mut to = Packer::default();
                self.pack(&mut to);
                Note::Nameless(NamelessNote {
                    id: self.id,
                    open: attr.filter(|_| is_open_only).map(|attr| attr.ino),
                    is_file: self.kind == Kind::File,
                    bytes: to.done(),
                })
            }
        }
    }
}

impl<L: Layer> Handover<L> {
    /// Returns the notes about its objects.
    pub fn notes(&self) -> impl Iterator<Item = Note> {
        let named = self.named.iter().map(|Named { id, ino, parent, path, .. }| {
            Note::Place(Place { id: *id, ino: *ino, parent: *parent, name: path.clone().into() })
        });
        named.chain(self.nameless.iter().map(Nameless::note))
    }
}

/// Packs notes as [`Overlay::pack`] packs the objects of a plan. `next_id` is the lowest id that no
/// object has had. The front end knows the named objects that are `wanted`, and all nameless ones.
/// Each of these comes with the number and the access of its open file, if it has one.
pub fn pack_notes<'a>(
    next_id: u64,
    named: impl ExactSizeIterator<Item = (&'a Place, bool)>,
    nameless: impl ExactSizeIterator<Item = (&'a NamelessNote, Option<(u64, Access)>)>,
) -> Vec<u8> {
    let mut to = Packer::default();
    to.number(next_id);
    to.option(None::<()>, |_, ()| {});
    to.list(named, |to, (Place { id, ino, parent, name }, wanted)| {
        to.numbers(&[*id, *ino, *parent, wanted.into()]);
        to.text(name);
    });
    to.number(nameless.len() as u64);
    for (note, file) in nameless {
        to.append(&note.bytes);
        to.option(file, |to, (file, access)| to.numbers(&[file, number_of(&ACCESSES, access)]));
    }
    to.done()
}
