//! Doubly linked lists whose nodes live in a [`Slab`]: append and removal anywhere cost the same
//! however long a list is, which is what a guest that hangs up while it waits needs.

use slab::Slab;

/// "No node": no slab grows that far.
const NONE: usize = usize::MAX;

/// A node's neighbours in the one list it is in.
#[derive(Debug)]
pub(super) struct Links {
    previous: usize,
    next: usize,
}

impl Links {
    /// Of a node that is in no list.
    pub(super) const fn unlinked() -> Self {
        Self {
            previous: NONE,
            next: NONE,
        }
    }
}

/// What can be in a list.
pub(super) trait Linked {
    /// The node's neighbours.
    fn links(&mut self) -> &mut Links;
}

/// First and last node of a list; its nodes are in a slab that the caller passes every time.
#[derive(Debug)]
pub(super) struct List {
    head: usize,
    tail: usize,
    len: usize,
}

impl List {
    /// A list of nothing.
    pub(super) const fn new() -> Self {
        Self {
            head: NONE,
            tail: NONE,
            len: 0,
        }
    }

    /// How many nodes are in it.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Whether no node is in it.
    pub(super) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first node.
    pub(super) const fn front(&self) -> Option<usize> {
        if self.head == NONE {
            None
        } else {
            Some(self.head)
        }
    }

    /// The last node.
    pub(super) const fn back(&self) -> Option<usize> {
        if self.tail == NONE {
            None
        } else {
            Some(self.tail)
        }
    }

    /// Appends a node that is in no list.
    pub(super) fn push_back<T: Linked>(&mut self, nodes: &mut Slab<T>, node: usize) {
        *nodes[node].links() = Links {
            previous: self.tail,
            next: NONE,
        };
        match self.tail {
            NONE => self.head = node,
            tail => nodes[tail].links().next = node,
        }
        self.tail = node;
        self.len += 1;
    }

    /// Takes a node of this list out of it.
    pub(super) fn remove<T: Linked>(&mut self, nodes: &mut Slab<T>, node: usize) {
        let Links { previous, next } = std::mem::replace(nodes[node].links(), Links::unlinked());
        match previous {
            NONE => self.head = next,
            previous => nodes[previous].links().next = next,
        }
        match next {
            NONE => self.tail = previous,
            next => nodes[next].links().previous = previous,
        }
        self.len -= 1;
    }

    /// Moves a node of this list to its end.
    pub(super) fn move_to_back<T: Linked>(&mut self, nodes: &mut Slab<T>, node: usize) {
        if self.tail != node {
            self.remove(nodes, node);
            self.push_back(nodes, node);
        }
    }

    /// The nodes, first to last.
    pub(super) fn iter<'a, T: Linked>(
        &self,
        nodes: &'a mut Slab<T>,
    ) -> impl Iterator<Item = usize> + use<'a, T> {
        let mut at = self.head;
        std::iter::from_fn(move || {
            let node = (at != NONE).then_some(at)?;
            at = nodes[node].links().next;
            Some(node)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    struct Node {
        links: Links,
        value: u32,
    }

    impl Linked for Node {
        fn links(&mut self) -> &mut Links {
            &mut self.links
        }
    }

    proptest! {
        #[test]
        fn a_list_does_what_a_deque_does(steps in proptest::collection::vec((0_u8..4, 0_usize..64), 0..200)) {
            let mut nodes = Slab::new();
            let mut list = List::new();
            let mut model: VecDeque<(usize, u32)> = VecDeque::new();
            for (number, (step, choice)) in steps.into_iter().enumerate() {
                let value = u32::try_from(number).unwrap();
                match step {
                    0 | 1 => {
                        let node = nodes.insert(Node { links: Links::unlinked(), value });
                        list.push_back(&mut nodes, node);
                        model.push_back((node, value));
                    }
                    2 if !model.is_empty() => {
                        let (node, value) = model.remove(choice % model.len()).unwrap();
                        list.remove(&mut nodes, node);
                        prop_assert_eq!(nodes.remove(node).value, value);
                    }
                    3 if !model.is_empty() => {
                        let moved = model.remove(choice % model.len()).unwrap();
                        model.push_back(moved);
                        list.move_to_back(&mut nodes, moved.0);
                    }
                    _ => {}
                }
                prop_assert_eq!(list.len(), model.len());
                prop_assert_eq!(list.front(), model.front().map(|entry| entry.0));
                prop_assert_eq!(list.back(), model.back().map(|entry| entry.0));
                let walked: Vec<usize> = list.iter(&mut nodes).collect();
                let expected: Vec<usize> = model.iter().map(|entry| entry.0).collect();
                prop_assert_eq!(walked, expected);
            }
        }
    }
}
