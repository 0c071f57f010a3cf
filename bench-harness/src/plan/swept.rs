//! What a sweep tries settings on.

use std::rc::Rc;

use super::{Plan, Target};
use crate::configuration::Configuration;
use crate::generator::Shape;
use crate::ycsb::Workload;

const PAGE_BYTES: usize = 4096;

/// The workload of a sweep whose best settings serve this one too.
pub fn swept_like(workload: Workload) -> Workload {
    match workload {
        Workload::A | Workload::F => Workload::A,
        Workload::B | Workload::C | Workload::D | Workload::E | Workload::Uniform => Workload::C,
        Workload::Sequential => Workload::Sequential,
    }
}

/// Where settings are tried.
#[derive(Debug)]
pub struct SweptData {
    /// Without measurements.
    pub target: Target,
    pub workloads: Vec<Workload>,
    /// Only settings that depend on how data lies on disk, from what was best on the first shape.
    pub again: bool,
}

impl Plan {
    /// The shape whose best settings serve this one too: values of less than a page all lie together with others. It matters whether they compress.
    pub fn swept_shape(&self, shape: &Shape) -> Shape {
        let (value_kind, protocol) = (shape.value_kind, shape.protocol.without_index());
        if shape.value_sizes.largest() < PAGE_BYTES { Shape { value_kind, protocol, ..self.shape } } else { Shape { protocol, ..*shape } }
    }

    /// What settings are tried on first, where records are kept in this way.
    pub fn usual_shape(&self, shape: &Shape) -> Shape {
        Shape { protocol: shape.protocol.without_index(), ..self.shape }
    }

    /// What a sweep of this configuration tries its settings on, at each of the sweep's ratios.
    pub fn swept_data(&self, configuration: &Rc<Configuration>) -> Vec<SweptData> {
        let mut wanted: Vec<(Shape, Workload)> = Vec::new();
        for target in self.targets().filter(|target| target.configuration.name == configuration.name) {
            for measurement in &target.measurements {
                let swept = (self.swept_shape(&target.shape), swept_like(measurement.workload));
                if !wanted.contains(&swept) {
                    wanted.push(swept);
                }
            }
        }
        let random = [Workload::C, Workload::A];
        let first: Vec<Workload> = random.into_iter().filter(|like| wanted.iter().any(|(_, workload)| workload == like)).collect();
        // Who never has the usual shape starts with what it has.
        let usual = wanted.first().map_or(self.shape, |(shape, _)| self.usual_shape(shape));
        let is_usual = wanted.iter().any(|(shape, _)| *shape == usual);
        let start = wanted.first().map_or(usual, |(shape, _)| if is_usual { usual } else { *shape });
        let mut all = vec![(start, first, false)];
        if wanted.contains(&(start, Workload::Sequential)) {
            all.push((start, vec![Workload::Sequential], true));
        }
        let mut others: Vec<Shape> = Vec::new();
        for (shape, _) in wanted.iter().filter(|(shape, _)| *shape != start) {
            if !others.contains(shape) {
                others.push(*shape);
            }
        }
        for shape in others {
            all.push((shape, random.into_iter().filter(|&workload| wanted.contains(&(shape, workload))).collect(), true));
        }
        let data = |(ratio, (shape, workloads, again)): (f64, &(Shape, Vec<Workload>, bool))| SweptData {
            target: Target { configuration: Rc::clone(configuration), ratio, shape: *shape, measurements: Vec::new() },
            workloads: workloads.clone(),
            again: *again,
        };
        let ratios = if configuration.is_limited() { self.sweep_ratios.as_slice() } else { &[1.0] };
        let swept = all.iter().filter(|(_, workloads, _)| !workloads.is_empty());
        swept.flat_map(|of_shape| ratios.iter().map(move |&ratio| data((ratio, of_shape)))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configuration::find;
    use crate::plan::stages::FOCUS;
    use crate::plan::tests::wishes;
    use crate::values::ValueKind;

    #[test]
    fn settings_are_tried_where_they_matter() {
        let plan = Plan::grid(&wishes()).unwrap();
        let swept = |name: &str| plan.swept_data(&find(name).unwrap());
        let kernel_swap = swept("kernel-swap-ssd");
        assert_eq!(kernel_swap[0].workloads, [Workload::C, Workload::A]);
        assert_eq!(kernel_swap[1].workloads, [Workload::Sequential]);
        assert!(kernel_swap.iter().all(|data| data.target.ratio == FOCUS));
        // 100 B lie together in pages as 1,000 B do; 4 KiB, 16 KiB and the mix do not.
        assert_eq!(kernel_swap.iter().map(|data| data.again).collect::<Vec<_>>(), [false, true, true, true, true]);
        assert!(kernel_swap[2..].iter().all(|data| data.target.shape.value_sizes.largest() >= PAGE_BYTES));
        // Values that compress are other work for zram; compressed memory has no others.
        let kinds = |name: &str| swept(name).iter().map(|data| (data.target.shape.value_kind, data.again)).collect::<Vec<_>>();
        assert_eq!(kinds("kernel-swap-zram"), [(ValueKind::Random, false), (ValueKind::Text, true)]);
        assert_eq!(kinds("lightswap-compressed"), [(ValueKind::Text, false)]);
        assert_eq!((swept("dram").len(), swept("dram")[0].target.ratio), (1, 1.0));
    }
}
