/** The sessions of a model that are open, without keeping those alive that nobody else holds: who forgets dispose() leaks nothing. */
export class OpenSessions<Session extends object> implements Iterable<Session> {
  private readonly references = new Set<WeakRef<Session>>();
  private readonly own = new WeakMap<Session, WeakRef<Session>>();
  private readonly net = new FinalizationRegistry<WeakRef<Session>>((reference) => this.references.delete(reference));

  add(session: Session): void {
    const reference = new WeakRef(session);
    this.references.add(reference);
    this.own.set(session, reference);
    this.net.register(session, reference, session);
  }

  delete(session: Session): void {
    const reference = this.own.get(session);
    if (!reference) return;
    this.references.delete(reference);
    this.net.unregister(session);
  }

  get size(): number {
    return [...this].length;
  }

  *[Symbol.iterator](): Iterator<Session> {
    for (const reference of this.references) {
      const session = reference.deref();
      if (session) yield session;
    }
  }
}
