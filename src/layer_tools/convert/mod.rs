//! `convert`: changes the format of an upper layer, or resolves what only this overlay reads.
//!
//! A layer in the other format is built in the work directory, from hard links (`relink`). One
//! step exchanges it with the old one, which is removed then. So a crash leaves the layer before or
//! after it; the rest is swept by the next mount. With `--deref` the engine resolves redirects
//! first, in the present format.

mod relink;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::check::check;
use super::options::{Word, Words, check_upper};
use super::{Error, Outcome, Tool, Watch, escaped};
use crate::errno::{self, EBUSY, EINTR, EINVAL, ENOENT, EXDEV};
use crate::format::attribute::names;
use crate::format::{self, Format, Wanted, kernel};
use crate::fsck::Checker;
use crate::layer::{Kind, Layer, Object, OsLayer, RenameMode};
use crate::mount::{self, open_layers};
use crate::options::{self, Options};
use crate::overlay::on_disk::{
    Features, LayerDir, Record, Stack, hold, hold_on_all_hosts, remove_tree, try_kernel_marks,
};
use crate::overlay::{Feature, Layers, Overlay, Refused, Settings};
use relink::Relink;

/// The name of the layer under construction in the work directory, and of the old one later. A
/// mount sweeps it.
const BUILT: &str = "tmp.convert";

/// The subcommand `convert`.
struct Convert {
    layers: Options,
    to: Option<Wanted>,
    deref: bool,
}

/// Parses the options of `convert`.
///
/// # Errors
///
/// Each names the wrong or missing word.
pub fn parse(words: &mut Words) -> Result<Box<dyn Tool>, options::Error> {
    let mut convert = Convert { layers: Options::default(), to: None, deref: false };
    while let Some(word) = words.word()? {
        match &word {
            Word::Option(option) if option == "--deref" => convert.deref = true,
            Word::Option(option) if option == "--to" => {
                let value = words.value()?;
                convert.to = Some(match value.to_str() {
                    Some("oci") => Wanted::Oci,
                    Some("kernel") => Wanted::Kernel,
                    _ => {
                        let value = value.display();
                        return Err(options::Error::new(format!("There is no format {value}: use oci or kernel.")));
                    }
                });
            }
            _ => words.take_layers(&word, &mut convert.layers)?,
        }
    }
    check_upper(&mut convert.layers)?;
    if convert.to.is_none() && !convert.deref {
        return Err(options::Error::new("No format is given: name it with --to, or use --deref."));
    }
    Ok(Box::new(convert))
}

impl Tool for Convert {
    fn run(&self, _out: &mut dyn Write, watch: &dyn Watch) -> Result<Outcome, Error> {
        let upper = self.layers.upper.clone().unwrap_or_default();
        let present = self.present()?;
        let refused = |cause| mount::Error::Refused { upper: upper.clone(), work: present.work.clone(), cause };
        let checker = Checker::new(open_layers(&present, true)?).map_err(refused)?;
        check(&checker, &upper)?;
        drop(checker);
        let Options { trusted, format, .. } = present;
        let settings = Settings { trusted, format, ..Settings::for_walk() };
        let overlay = Overlay::with_settings(open_layers(&present, true)?, settings).map_err(refused)?;
        settle(&overlay, self.deref, watch)?;
        drop(overlay);
        let Some(to) = self.to else { return Ok(Outcome::Done) };
        convert(Site::open(&self.layers)?, to, trusted, watch)?;
        Ok(Outcome::Done)
    }
}

impl Convert {
    /// Returns the layers with the work directory that the upper layer has at present: the one
    /// inside, if the other is not used yet.
    fn present(&self) -> Result<Options, Error> {
        let mut present = self.layers.clone();
        if let (Some(upper), Some(work)) = (&present.upper, &present.work) {
            let cause = |error| Error::at("read", work, error);
            let is_new = work.read_dir().map_err(cause)?.next().is_none();
            if is_new && upper.join(format::WORK).is_dir() {
                present.work = None;
            }
        }
        Ok(present)
    }
}

/// Prepares an upper layer for other programs: its files have all their data and names. With
/// `deref` it has no redirects.
///
/// # Errors
///
/// - [`Error::At`]: an object cannot be copied.
/// - [`Error::Stopped`]: `watch` wants to stop.
pub fn settle<L: Layer>(overlay: &Overlay<L>, deref: bool, watch: &dyn Watch) -> Result<(), Error> {
    let mut each = || if watch.wants_stop() { Err(errno::Error::new(EINTR)) } else { Ok(()) };
    // The walk replaces deletions of fuse-overlayfs.
    let redirects = overlay.redirects().map(drop);
    let settled = redirects
        .and_then(|()| if deref { overlay.dereference(&mut each) } else { Ok(()) })
        .and_then(|()| overlay.make_whole())
        .and_then(|()| overlay.sync_upper());
    match settled {
        Err(error) if error.errno == EINTR && watch.wants_stop() => Err(Error::Stopped),
        settled => settled.map_err(|error| Error::in_tree("complete the files of", Path::new(""), error)),
    }
}

/// The directories of a conversion.
pub struct Site<L: Layer> {
    /// The directory with the upper layer.
    pub place: L,
    /// The name of the upper layer in it.
    pub name: OsString,
    /// The upper layer, to be held.
    pub upper: L,
    /// The work directory, with renames from and to `place`.
    pub work: L,
}

impl Site<OsLayer> {
    /// Opens the directories that `layers` names.
    ///
    /// # Errors
    ///
    /// - [`Error::At`], [`Error::Layers`]: a directory cannot be opened.
    /// - [`Error::Refused`]: no work directory is named, or the upper layer is no entry of another
    ///   directory.
    pub fn open(layers: &Options) -> Result<Self, Error> {
        let Layers { upper: Some(upper), .. } = open_layers(&Options { work: None, ..layers.clone() }, true)? else {
            return Err(Error::Refused("an upper layer is needed".to_owned()));
        };
        let Some(work) = &layers.work else {
            return Err(Error::Refused(
                "a work directory beside the upper layer is needed, on the same filesystem: name it with --work. The \
                 layer uses it from then on"
                    .to_owned(),
            ));
        };
        let real = |path: &PathBuf| path.canonicalize().map_err(|cause| Error::at("open", path, cause));
        let path = real(&layers.upper.clone().unwrap_or_default())?;
        let (Some(place), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Error::Refused(format!("{} is the root of the system", escaped(&path))));
        };
        let work_path = real(work)?;
        let (place, work) =
            OsLayer::open_pair(place, &work_path).map_err(|error| Error::at("open", &work_path, error))?;
        Ok(Site { place, name: name.to_owned(), upper, work })
    }
}

/// Changes the format of an upper layer that was [settled](settle). Does nothing if it has the
/// format. With `trusted`, each redirect counts.
///
/// # Errors
///
/// - [`Error::Layers`]: the layer is in use, or its filesystem cannot have the format.
/// - [`Error::Refused`]: the format cannot say what the layer says, or the filesystem cannot
///   exchange.
/// - [`Error::At`]: a step failed.
/// - [`Error::Stopped`]: `watch` wants to stop.
pub fn convert<L: Layer>(site: Site<L>, to: Wanted, trusted: bool, watch: &dyn Watch) -> Result<(), Error> {
    let Site { place, name, upper, work } = site;
    let shown = upper.path().unwrap_or(Path::new("")).to_owned();
    let failed = |error| Error::at("convert", &shown, error);
    let refused = |cause| mount::Error::Refused { upper: shown.clone(), work: work.path().map(Path::to_owned), cause };
    let work_root = work.root().map_err(failed)?;
    for is_taken in [hold(&upper), hold(&work), hold_on_all_hosts(&work, &work_root)] {
        if !is_taken.map_err(failed)? {
            return Err(refused(Refused::Held(None)).into());
        }
    }
    let record = Record::read(&work, &work_root).map_err(failed)?;
    if record.is_some_and(|record| record.features.has(Feature::Snapshots)) {
        return Err(refused(Refused::Snapshots).into());
    }
    let stack = Stack::new(vec![place], true).map_err(failed)?;
    let root = stack.upper_root().cloned().ok_or_else(|| refused(Refused::NoLayer))?;
    let (old, work) = (stack.child(&root, &name), stack.anchored(0, work_root));
    let from = format_of(&stack, &old).map_err(failed)?;
    if from.features().is_kernels == (to == Wanted::Kernel) {
        return Ok(());
    }
    let (to, top_mark) = match to {
        Wanted::Oci => (format::OCI, None),
        Wanted::Kernel => {
            let usable = stack.open(&work).and_then(|work| try_kernel_marks(stack.top(), &work, None));
            let namespace = usable.map_err(|error| refused(Refused::CannotMark(error)))?;
            let (name, value) = kernel::FORMAT;
            (kernel::format(namespace), Some((namespace.name(name), value)))
        }
    };
    let relink = Relink { stack: &stack, from, to, top_mark, trusted, watch };
    let built = remove_built(&stack, &work)
        .map_err(failed)
        .and_then(|()| relink.build(&old, &work, OsStr::new(BUILT)))
        .and_then(|features| note_features(&stack, &work, features).map_err(failed))
        .and_then(|()| exchange(&stack, (&root, &name), &work, &shown));
    let removed = remove_built(&stack, &work);
    built?;
    removed.map_err(|error| Error::at("remove the old form of", &shown, error))
}

/// Exchanges the upper layer with the new one in the work directory.
fn exchange<L: Layer>(
    stack: &Stack<L>,
    (root, name): (&LayerDir<L>, &OsStr),
    work: &LayerDir<L>,
    shown: &Path,
) -> Result<(), Error> {
    let layer = stack.top();
    if !layer.capabilities().exchange {
        let shown = escaped(shown);
        return Err(Error::Refused(format!("the filesystem of {shown} cannot exchange two directories in one step")));
    }
    let exchanged = (|| {
        let (root, work) = (stack.open(root)?, stack.open(work)?);
        // Everything is on the disk before it gets its place.
        layer.sync_all()?;
        layer.rename(&root, name, &work, OsStr::new(BUILT), RenameMode::Exchange)?;
        layer.sync_dir(&root)?;
        layer.sync_dir(&work)
    })();
    // The cache would lead to the old layer by the new name.
    stack.close_dirs();
    exchanged.map_err(|error: errno::Error| match error.errno {
        EBUSY | EINVAL | EXDEV => Error::Refused(format!(
            "{} cannot be exchanged with a directory in the work directory ({error}); it must be no mount point, and \
             on the same filesystem",
            escaped(shown)
        )),
        _ => Error::at("exchange", shown, error),
    })
}

/// Returns the format of an upper layer.
fn format_of<L: Layer>(stack: &Stack<L>, dir: &LayerDir<L>) -> errno::Result<Format> {
    let names = names(stack.layer(dir), Object::Dir(&*stack.open(dir)?))?;
    Ok(kernel::Namespace::of(&names).map_or(format::OCI, kernel::format))
}

/// Names features in the record of the work directory, if it has one. A mount without one makes it.
fn note_features<L: Layer>(stack: &Stack<L>, work: &LayerDir<L>, features: Features) -> errno::Result<()> {
    let open = stack.open(work)?;
    match Record::read(stack.top(), &open)? {
        Some(_) => Record::change(stack.top(), &open, features, Features::default()),
        None => Ok(()),
    }
}

/// Removes what a conversion left in the work directory, if there is anything.
fn remove_built<L: Layer>(stack: &Stack<L>, dir: &Arc<LayerDir<L>>) -> errno::Result<()> {
    match remove_tree(stack, dir, OsStr::new(BUILT), Kind::Dir) {
        Err(error) if error.errno == ENOENT => Ok(()),
        removed => removed,
    }
}
