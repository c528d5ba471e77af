//! The trees that a snapshot has in the end. The library's own is flat, and says of each file that it is empty: it asks for sizes before
//! it reads.

use std::{collections::HashSet, path::Path};

use jiff::Timestamp;
use rustic_core::{
    DataId, FileType, Id,
    repofile::{BlobType, Metadata, Node, NodeType, Tree},
};

use crate::{
    capture::StoredFile,
    copies::name_of,
    error::{Error, Result},
    format::{Pack, Seal, id_of, index_of},
    manifest::{FILE, Manifest},
    streams::numbered,
};

/// The trees that a snapshot has in the end, and the packs that they are in.
pub(crate) struct Trees<'s> {
    pub(crate) seal: &'s Seal,
    pub(crate) now: Timestamp,
}

pub(crate) struct Written {
    pub(crate) root: Id,
    /// The names in the root.
    pub(crate) top: Vec<String>,
    /// In the order in which they are to be written.
    pub(crate) objects: Vec<(String, Vec<u8>)>,
}

impl Trees<'_> {
    pub(crate) fn write(&self, nodes: Vec<Node>, files: &[StoredFile], manifest: &Manifest) -> Result<Written, String> {
        let text = serde_json::to_vec_pretty(manifest).map_err(|error| error.to_string())?;
        let mut data = Pack::new(self.seal, BlobType::Data);
        let blob = data.add(&text)?;
        let mut placed: Vec<(&Path, Node)> = Vec::new();
        for (number, file) in files.iter().enumerate() {
            let wanted = numbered(number);
            let node = nodes.iter().find(|node| node.name == wanted).ok_or("a file is missing in the tree")?;
            let path = Path::new(&file.path);
            placed.push((path, self.file(path, file.size, node.content.clone().unwrap_or_default())));
        }
        let path = Path::new(FILE);
        placed.push((path, self.file(path, text.len() as u64, vec![blob.into()])));
        let mut trees = Pack::new(self.seal, BlobType::Tree);
        let root = self.tree(Path::new(""), &placed, &mut trees)?;
        let mut top: Vec<String> = placed.iter().filter_map(|(path, _)| first(path)).collect();
        top.sort();
        top.dedup();
        let (data, trees) = (data.finish()?, trees.finish()?);
        let index = self.seal.file(&index_of(vec![data.index, trees.index]))?;
        let objects = vec![
            (name_of(FileType::Pack, &data.id), data.bytes),
            (name_of(FileType::Pack, &trees.id), trees.bytes),
            (name_of(FileType::Index, &id_of(&index)), index),
        ];
        Ok(Written { root, top, objects })
    }

    /// A directory and all below it; in restic's trees names are sorted.
    fn tree(&self, directory: &Path, placed: &[(&Path, Node)], pack: &mut Pack<'_>) -> Result<Id, String> {
        let mut tree = Tree::default();
        let below = |path: &Path| path.strip_prefix(directory).ok().map(Path::to_owned);
        let mut names: Vec<String> = placed.iter().filter_map(|(path, _)| first(&below(path)?)).collect();
        names.sort();
        names.dedup();
        for name in names {
            let path = directory.join(&name);
            let node = match placed.iter().find(|(at, _)| *at == path) {
                Some((_, file)) => file.clone(),
                None => {
                    let mut node = Node::new_node(name.as_ref(), NodeType::Dir, self.metadata(0o755, 0));
                    node.subtree = Some(self.tree(&path, placed, pack)?.into());
                    node
                }
            };
            tree.nodes.push(node);
        }
        let (bytes, _) = tree.serialize().map_err(|error| error.to_string())?;
        pack.add(&bytes)
    }

    fn file(&self, path: &Path, size: u64, content: Vec<DataId>) -> Node {
        let name = path.file_name().unwrap_or_default();
        let mut node = Node::new_node(name, NodeType::File, self.metadata(0o600, size));
        node.content = Some(content);
        node
    }

    fn metadata(&self, mode: u32, size: u64) -> Metadata {
        const DIRECTORY: u32 = 1 << 31; // Go's os.ModeDir, as which restic keeps it.
        let mode = if mode == 0o755 { mode | DIRECTORY } else { mode };
        let time = Some(self.now);
        Metadata { mode: Some(mode), mtime: time, atime: time, ctime: time, size, links: 1, ..Metadata::default() }
    }
}

/// Whether files of these paths can all be in one tree, beside the manifest, and be restored to a file system.
pub(crate) fn placeable<'p>(paths: impl Iterator<Item = &'p str>) -> Result<()> {
    let mut files = HashSet::from([FILE]);
    let mut directories = HashSet::new();
    for path in paths {
        let wrong = |why: &str| Err(Error::Path { path: path.to_owned(), why: why.to_owned() });
        if path.starts_with('/') {
            return wrong("it is absolute");
        }
        if path.split('/').any(|name| matches!(name, "" | "." | "..")) {
            return wrong("a part of it is empty, `.` or `..`");
        }
        if path.split('/').any(|name| name.len() > LONGEST) || path.contains(char::is_control) {
            return wrong("a part of it is no name that every file system has");
        }
        if !files.insert(path) {
            return wrong("another file has it");
        }
        directories.extend(path.match_indices('/').map(|(at, _)| &path[..at]));
    }
    match files.intersection(&directories).next() {
        Some(path) => Err(Error::Path { path: (*path).to_owned(), why: "other files are below it".to_owned() }),
        None => Ok(()),
    }
}

/// Of a name, bytes (Linux, `limits.h`).
const LONGEST: usize = 255;

fn first(path: &Path) -> Option<String> {
    path.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned())
}
