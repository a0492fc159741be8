//! Values on a GPU: rows in a pool buffer, or some of their columns. Their computation may be deferred.

use std::sync::{Arc, Mutex, OnceLock, Weak};

use candle_core::{D, Tensor};

use super::gpu::Region;
use super::kernels::{Activation, CopyColumns, Gate, Map, MapOp, MeanOfRealTokens, NormForm};
use super::space::Space;
use super::weights::DeviceNorm;
use crate::error::{Error, Result};
use crate::kernels::Epilogue;
use crate::lock::lock;

mod deferred;

pub(super) use deferred::{Deferred, Operation, gemv, product};

/// A view `[batch, seq, groups * size]` of a buffer: in each row, `groups` groups of `size` columns, `stride` columns
/// apart.
#[derive(Clone)]
pub(crate) struct DeviceRows {
    pub(super) space: Arc<Space>,
    pub(super) place: Arc<Place>,
    pub(super) batch: usize,
    pub(super) seq: usize,
    /// Row stride of the buffer in elements.
    pub(super) width: usize,
    pub(super) first: usize,
    /// Columns per group.
    pub(super) size: usize,
    pub(super) groups: usize,
    /// Columns from one group to the next.
    pub(super) stride: usize,
    /// The operation on these columns that has not run yet.
    pub(super) pending: Option<OnColumns>,
    /// Whether the tensor shape is `[rows, columns]` instead of `[batch, seq, columns]`.
    is_flat: bool,
    tensor: OnceLock<Tensor>,
}

/// An operation on some columns of the rows, deferred until they are read.
#[derive(Clone)]
pub(super) enum OnColumns {
    Norm(Arc<DeviceNorm>),
    Activation(Activation),
}

/// A buffer that is acquired from the pool when it is first written to.
#[derive(Default)]
pub(super) struct Place {
    region: OnceLock<Arc<Region>>,
    deferred: Mutex<Option<Deferred>>,
    /// Possibly deferred norms of these rows; they must run before the rows change.
    norms: Mutex<Vec<Weak<Place>>>,
}

impl Place {
    /// Returns the buffer; launches the deferred operation first, if there is one.
    fn region(&self) -> Result<Arc<Region>> {
        let deferred = lock(&self.deferred).take();
        if let Some(deferred) = deferred {
            let region = deferred.room()?;
            deferred.run(&region)?;
            self.region.get_or_init(|| region);
        }
        self.region.get().cloned().ok_or_else(|| Error::Gpu("rows that nobody has written".to_owned()))
    }
}

impl DeviceRows {
    fn at(space: &Arc<Space>, place: Arc<Place>, [batch, seq, width]: [usize; 3]) -> Self {
        Self {
            space: Arc::clone(space),
            place,
            batch,
            seq,
            width,
            first: 0,
            size: width,
            groups: 1,
            stride: 0,
            pending: None,
            is_flat: false,
            tensor: OnceLock::new(),
        }
    }

    /// All columns of the rows in `region`.
    pub(super) fn within(space: &Arc<Space>, region: Arc<Region>, shape: [usize; 3], is_flat: bool) -> Self {
        let place = Place { region: OnceLock::from(region), ..Place::default() };
        Self { is_flat, ..Self::at(space, Arc::new(place), shape) }
    }

    /// A new buffer with as many rows as `self` and `width` columns; the content is unspecified.
    pub(super) fn beside(&self, width: usize) -> Result<Self> {
        let region = self.space.acquire_elements(self.rows() * width)?;
        Ok(Self::within(&self.space, region, [self.batch, self.seq, width], self.is_flat))
    }

    /// Whole rows, computed by `deferred` when they are read.
    pub(super) fn deferred(deferred: Deferred) -> Self {
        let xs = deferred.xs.clone();
        let shape = [xs.batch, xs.seq, deferred.width()];
        let deferred = Mutex::new(Some(deferred));
        let rows = Self::at(&xs.space, Arc::new(Place { deferred, ..Place::default() }), shape);
        Self { is_flat: xs.is_flat, ..rows }
    }

    /// Copies a tensor to the device.
    pub(crate) fn from_tensor(space: &Arc<Space>, tensor: &Tensor) -> Result<Self> {
        let features = tensor.dim(D::Minus1)?;
        let (batch, seq, is_flat) = match tensor.dims() {
            [batch, seq, _] => (*batch, *seq, false),
            _ => (tensor.elem_count() / features.max(1), 1, true),
        };
        let region = space.acquire_elements(tensor.elem_count())?;
        space.upload(tensor, &region)?;
        Ok(Self::within(space, region, [batch, seq, features], is_flat))
    }

    pub(super) fn rows(&self) -> usize {
        self.batch * self.seq
    }

    pub(super) fn columns(&self) -> usize {
        self.groups * self.size
    }

    /// The shape as a tensor.
    pub(super) fn shape(&self) -> Vec<usize> {
        let columns = self.columns();
        if self.is_flat { vec![self.rows(), columns] } else { vec![self.batch, self.seq, columns] }
    }

    fn is_whole(&self) -> bool {
        self.columns() == self.width && self.pending.is_none() && self.groups == 1
    }

    /// The buffer with all columns; a deferred operation runs first.
    pub(super) fn region(&self) -> Result<Arc<Region>> {
        self.place.region()
    }

    /// The part of the buffer that starts at the first column of this view.
    fn at_first(&self) -> Result<Region> {
        let region = self.region()?;
        let skipped = self.first * self.space.dtype.size();
        Ok(region.part(skipped, region.bytes() - skipped))
    }

    /// The deferred operation that computes these rows, for a caller that fuses it into another one. `None` for partial
    /// columns.
    pub(super) fn pending(&self) -> Option<Deferred> {
        if self.is_whole() { lock(&self.place.deferred).clone() } else { None }
    }

    pub(crate) fn part(&self, first: usize, columns: usize) -> Self {
        Self { first: self.first + first, size: columns, tensor: OnceLock::new(), ..self.clone() }
    }

    pub(crate) fn gathered(&self, groups: usize, start: usize, size: usize) -> Self {
        let stride = self.size / groups;
        Self { first: self.first + start, size, groups, stride, tensor: OnceLock::new(), ..self.clone() }
    }

    /// The same values with the tensor shape `[rows, columns]`.
    pub(crate) fn flat(&self) -> Self {
        Self { batch: self.rows(), seq: 1, is_flat: true, tensor: OnceLock::new(), ..self.clone() }
    }

    /// The same values with the batch size and sequence length of `rows`, whose number of rows must be equal.
    pub(crate) fn shaped_as(&self, rows: &Self) -> Self {
        let (batch, seq, is_flat) = (rows.batch, rows.seq, rows.is_flat);
        Self { batch, seq, is_flat, tensor: OnceLock::new(), ..self.clone() }
    }

    /// The first position of each sequence.
    pub(crate) fn first_position(&self) -> Result<Self> {
        let rows = self.whole()?;
        let width = rows.seq * rows.width;
        Ok(Self { seq: 1, width, is_flat: true, tensor: OnceLock::new(), ..rows })
    }

    /// The mean over the real tokens of each sequence; `real: [batch, seq]`, u8, is 0 at padding.
    pub(crate) fn mean_of_real_tokens(&self, real: Option<&Region>) -> Result<Self> {
        let rows = self.whole()?;
        let out = self.space.acquire_elements(rows.batch * rows.width)?;
        MeanOfRealTokens {
            dtype: self.space.dtype,
            batch: rows.batch,
            tokens: rows.seq,
            features: rows.width,
            xs: &*rows.region()?,
            real,
            out: &out,
        }
        .launch()?;
        Ok(Self::within(&self.space, out, [rows.batch, 1, rows.width], true))
    }

    /// The columns as contiguous rows, copied only if the view does not cover the whole buffer or an operation is
    /// pending.
    pub(super) fn whole(&self) -> Result<Self> {
        if self.is_whole() {
            return Ok(self.clone());
        }
        let out = self.beside(self.columns())?;
        let to = out.region()?;
        match &self.pending {
            Some(OnColumns::Norm(norm)) if self.groups == 1 => {
                self.norm_to(norm, &to, out.width)?;
                return Ok(out);
            }
            _ => self.copy_to(&to, out.width, 0)?,
        }
        match &self.pending {
            None => Ok(out),
            Some(OnColumns::Norm(norm)) => {
                out.norm_to(norm, &to, out.width)?;
                Ok(out)
            }
            Some(OnColumns::Activation(activation)) => {
                out.map(MapOp::Activate(*activation), None, &to)?;
                Ok(out)
            }
        }
    }

    /// The left operand of a product: columns from column 0 on, with any row stride. Copies if necessary.
    pub(super) fn left(&self) -> Result<Self> {
        if self.first == 0 && self.groups == 1 && self.pending.is_none() {
            Ok(self.clone())
        } else {
            self.whole()
        }
    }

    /// Copies the columns to `to`, whose rows have `width` elements, starting at column `first`. A pending operation is
    /// not applied.
    pub(super) fn copy_to(&self, to: &Region, width: usize, first: usize) -> Result<()> {
        let skipped = first * self.space.dtype.size();
        CopyColumns {
            dtype: self.space.dtype,
            rows: self.rows(),
            groups: self.groups,
            size: self.size,
            from: &self.at_first()?,
            from_strides: (self.width, self.stride),
            to: &to.part(skipped, to.bytes() - skipped),
            to_strides: (width, self.size),
        }
        .launch()
    }

    /// Applies `norm` to the columns, which must be one group, and writes them to the start of the rows of `to`, which
    /// have `width` elements. May run in place. A pending operation is not applied.
    pub(super) fn norm_to(&self, norm: &DeviceNorm, to: &Region, width: usize) -> Result<()> {
        norm.checked(self.columns())?;
        let from = self.at_first()?;
        norm.launch(NormForm::Norm, [self.rows(), self.columns()], (&from, self.width), (to, width))
    }

    /// Applies `norm` to the columns in place; they must be one group.
    pub(super) fn norm_in_place(&self, norm: &DeviceNorm) -> Result<()> {
        self.norm_to(norm, &self.at_first()?, self.width)
    }

    fn map(&self, op: MapOp, other: Option<&Region>, to: &Region) -> Result<()> {
        let len = self.rows() * self.width;
        Map { dtype: self.space.dtype, op, len, xs: &*self.region()?, other, out: to }.launch()
    }

    /// A norm, deferred so that a sum or a product can fuse it, or attention if this is a view of some columns.
    pub(crate) fn normed(&self, norm: &Arc<DeviceNorm>) -> Result<Self> {
        norm.checked(self.columns())?;
        if self.pending.is_none() && !self.is_whole() {
            let pending = Some(OnColumns::Norm(Arc::clone(norm)));
            return Ok(Self { pending, tensor: OnceLock::new(), ..self.clone() });
        }
        let xs = self.whole()?;
        xs.region()?;
        let rows = Self::deferred(Deferred { operation: Operation::Norm(Arc::clone(norm)), xs });
        lock(&self.place.norms).push(Arc::downgrade(&rows.place));
        Ok(rows)
    }

    /// The deferred norm of these rows and its input, for a product that fuses the norm into its kernel. It stays
    /// deferred.
    pub(super) fn pending_norm(&self) -> Option<(Arc<DeviceNorm>, Self)> {
        match self.pending()? {
            Deferred { operation: Operation::Norm(norm), xs } if norm.heads_of(self.width) == Some(1) => {
                Some((norm, xs))
            }
            _ => None,
        }
    }

    pub(crate) fn finished(self, epilogue: Epilogue) -> Result<Self> {
        let op = match epilogue {
            Epilogue::Scale(factor) => MapOp::Scale(factor),
            Epilogue::SoftCap(cap) => MapOp::SoftCap(cap),
            Epilogue::Activate(activation) => MapOp::Activate(activation.into()),
            Epilogue::Store | Epilogue::Add(_) => return Ok(self),
        };
        if let Some(Deferred { operation: Operation::Product(weight, Epilogue::Store), xs }) = self.pending()
        {
            return Ok(Self::deferred(Deferred { operation: Operation::Product(weight, epilogue), xs }));
        }
        if let (MapOp::Activate(activation), false, None) = (op, self.is_whole(), &self.pending) {
            let pending = Some(OnColumns::Activation(activation));
            return Ok(Self { pending, tensor: OnceLock::new(), ..self });
        }
        let xs = self.whole()?;
        let out = xs.beside(xs.width)?;
        xs.map(op, None, &*out.region()?)?;
        Ok(out)
    }

    pub(crate) fn times(self, ys: &Self) -> Result<Self> {
        if let Some(OnColumns::Activation(activation)) = &self.pending
            && Arc::ptr_eq(&self.place, &ys.place)
            && [self.groups, ys.groups] == [1, 1]
            && ys.pending.is_none()
            && self.size == ys.size
            && self.first < ys.first
        {
            let out = self.beside(self.size)?;
            Gate {
                dtype: self.space.dtype,
                activation: *activation,
                rows: self.rows(),
                n: self.size,
                xs: &self.at_first()?,
                xs_row: self.width,
                up_first: ys.first - self.first,
                out: &*out.region()?,
                out_row: self.size,
            }
            .launch()?;
            return Ok(out);
        }
        let (xs, ys) = (self.whole()?, ys.whole()?);
        xs.fits(&ys)?;
        let out = xs.beside(xs.width)?;
        xs.map(MapOp::Multiply, Some(&*ys.region()?), &*out.region()?)?;
        Ok(out)
    }

    pub(crate) fn plus(self, ys: &Self) -> Result<Self> {
        let xs = self.whole()?;
        // `self` must not count as a reader of these rows in `may_change`.
        drop(self);
        xs.fits(ys)?;
        let pending = ys.pending();
        if let Some(deferred) = &pending {
            // A sum fused into a GEMV goes to a new buffer, so that deferred norms of the old rows can stay deferred.
            let out = xs.beside(xs.width)?;
            if deferred.add(&*xs.region()?, &*out.region()?)? {
                return Ok(out);
            }
        }
        if xs.may_change()? {
            let sum = xs.region()?;
            if !pending.map_or(Ok(false), |deferred| deferred.add_to(&sum))? {
                xs.map(MapOp::Add(1.0), Some(&*ys.whole()?.region()?), &sum)?;
            }
            return Ok(Self { tensor: OnceLock::new(), ..xs });
        }
        let out = xs.beside(xs.width)?;
        xs.map(MapOp::Add(1.0), Some(&*ys.whole()?.region()?), &*out.region()?)?;
        Ok(out)
    }

    fn fits(&self, other: &Self) -> Result<()> {
        if self.rows() == other.rows() && self.columns() == other.columns() {
            return Ok(());
        }
        Err(Error::Inputs(format!("values of shapes {:?} and {:?}", self.shape(), other.shape())))
    }

    /// Whether these rows have no other reader, so that they may be overwritten. Runs their deferred norms first.
    fn may_change(&self) -> Result<bool> {
        self.region()?;
        for reader in std::mem::take(&mut *lock(&self.place.norms)) {
            if let Some(reader) = reader.upgrade()
                && lock(&reader.deferred).is_some()
            {
                reader.region()?;
            }
        }
        Ok(Arc::strong_count(&self.place) == 1)
    }

    /// The value as a tensor on the CPU; downloaded once.
    pub(crate) fn tensor(&self) -> Result<&Tensor> {
        if self.tensor.get().is_none() {
            let tensor = self.space.download(&*self.whole()?.region()?, &self.shape())?;
            self.tensor.get_or_init(|| tensor);
        }
        self.tensor.get().ok_or_else(|| Error::Gpu("a tensor that was not downloaded".to_owned()))
    }

    /// A copy of the value for a probe. A deferred operation runs only for the copy and stays deferred, so that
    /// observing does not change which kernels run.
    pub(crate) fn observed(&self) -> Result<Tensor> {
        match self.pending() {
            Some(deferred) if self.tensor.get().is_none() => {
                let room = deferred.room()?;
                deferred.run(&room)?;
                self.space.download(&room, &self.shape())
            }
            _ => self.tensor().cloned(),
        }
    }
}
